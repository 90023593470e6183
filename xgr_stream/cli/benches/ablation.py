"""`xgr-stream bench ablation`: what each part of the engine gains, and that answers don't depend on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import click
import torch

from xgr_stream.cli.benches.options import Output, Setting, output_options, setting_options, several
from xgr_stream.cli.benches.plots import Plot
from xgr_stream.cli.benches.report import Report, start
from xgr_stream.cli.benches.samples import Samples, measure_in_turn
from xgr_stream.cli.benches.subject import Subject, Users, answer_as, check_answers, requests_of
from xgr_stream.engine import Engine, Switches
from xgr_stream.types import MAX_BEAM_WIDTH, CacheState, RecommendResponse

VARIANTS = {
    "everything on": Switches(),
    "staged attention off": Switches(staged_attention=False),
    "early stop off": Switches(early_stop=False),
    "masking before scoring off": Switches(mask_first=False),
    "graph off": Switches(graphs=False),
    "extra streams off": Switches(streams=False),
}
EXACT_REQUESTS = 2
"""Of those that are timed, in float32, too: where products are rounded in another order, 16 bits swap beams."""
COLUMNS = {
    "context": "context",
    "batch": "batch",
    "variant": "variant",
    "warm_ms": "warm ms (quartiles, P99)",
    "slower": "slower",
    "same_items": "same items",
    "score_difference": "largest score difference",
    "equal": "equal in float32",
    "skipped": "beams skipped per level",
    "skipped_children": "children skipped per level",
}


@click.command()
@setting_options
@several("--context", "Tokens in each user's context.  [default: 1000]")
@several("--batch", "Requests at once, a power of two.  [default: 1 and 8]")
@click.option("--beam", type=click.IntRange(1, MAX_BEAM_WIDTH), default=256, show_default=True, help="Beam width.")
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Timed runs, after three.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-3,
    show_default=True,
    help="Scores in float32 this close count as equal.",
)
@output_options
def ablation(
    setting: Setting,
    context: tuple[int, ...],
    batch: tuple[int, ...],
    beam: int,
    repeats: int,
    tolerance: float,
    output: Output,
) -> None:
    """Answer the same warm requests with one part of the engine switched off at a time.

    Fails if a part changes an answer of a model in float32, which answers the first two of them besides.
    """
    odd = [size for size in batch if size & (size - 1)]
    if odd:
        raise click.BadParameter(
            f"must be powers of two, which selection without a trie needs, not {odd}", param_hint="--batch"
        )
    subject = Subject(setting)
    report = start("ablation", COLUMNS, subject.description(), output)
    exact = subject
    if subject.model.decoder.dtype != torch.float32 or setting.kv_cache_dtype == "fp8":
        exact = Subject(replace(setting, dtype="float32", fp8=False, kv_cache_dtype=None))
    for length in context or (1000,):
        run = _Ablation(subject, exact, length, batch or (1, 8), beam, repeats, tolerance)
        for row in run.rows():
            report.add(row)
    report.notes.append(
        f"Equal: the same items with scores within {tolerance:g} of each other, or of the last, in float32."
    )
    report.finish(output, _plot(report))
    wrong = sorted({str(row["variant"]) for row in report.rows if not row["equal"]})
    if wrong:
        raise click.ClickException(f"answers differ from those with everything on: {', '.join(wrong)}")


class _Ablation:
    """The same requests to an engine of each variant, the first of which sets the answers and times to compare with."""

    def __init__(
        self,
        subject: Subject,
        exact: Subject,
        context: int,
        batches: Sequence[int],
        beam: int,
        repeats: int,
        epsilon: float,
    ) -> None:
        """`exact`: the same in float32."""
        self._subject = subject
        self._exact = exact
        self._batches = batches
        self._beam = beam
        self._repeats = repeats
        self._epsilon = epsilon
        self._users = subject.users(max(batches), context)
        self._few = exact.users(min(EXACT_REQUESTS, max(batches)), context)

    def rows(self) -> Iterator[dict[str, object]]:
        """One per batch size and variant, which are timed in turn."""
        exact = [self._exact_answers(chosen) for chosen in VARIANTS.values()]
        equal = [all(same for _, _, same in self._compare(answers, exact[0])) for answers in exact]
        engines = [self._warm(self._subject, self._users, chosen) for chosen in VARIANTS.values()]
        for batch in self._batches:
            views = self._users.steps[0][:batch]
            asked = requests_of(views, beam=self._beam, k=self._beam)
            answers = [answer_as(engine, asked, CacheState.WARM) for engine in engines]
            levels = [engine.last_skipped for engine in engines]
            quick = requests_of(views, beam=self._beam, k=min(10, self._beam))
            runs = [partial(answer_as, engine, quick, CacheState.WARM) for engine in engines]
            times = measure_in_turn(runs, self._subject.device, repeats=self._repeats)
            for i, variant in enumerate(VARIANTS):
                pairs = self._compare(answers[i], answers[0])
                yield {
                    "context": self._users.context,
                    "batch": batch,
                    "variant": variant,
                    "warm_ms": times[i],
                    "slower": times[i].median / times[0].median,
                    "same_items": min(same for same, _, _ in pairs),
                    "score_difference": max(difference for _, difference, _ in pairs),
                    "skipped": shares((level.beams, level.live_beams) for level in levels[i]) or None,
                    "skipped_children": shares((level.children, level.live_children) for level in levels[i]) or None,
                    "equal": equal[i],
                }

    def _warm(self, subject: Subject, users: Users, chosen: Switches) -> Engine:
        views = users.steps[0]
        engine = subject.engine(users, beam=self._beam, rows=len(views) * self._beam, switches=chosen)
        engine.warm(views)
        return engine

    def _exact_answers(self, chosen: Switches) -> Sequence[RecommendResponse]:
        engine = self._warm(self._exact, self._few, chosen)
        return check_answers(engine.answer(requests_of(self._few.steps[0], beam=self._beam, k=self._beam)))

    def _compare(
        self, mine: Sequence[RecommendResponse], others: Sequence[RecommendResponse]
    ) -> list[tuple[float, float, bool]]:
        return [compare(a, b, self._epsilon) for a, b in zip(mine, others, strict=True)]


def shares(parts: Iterable[tuple[int, int]]) -> str:
    """The share of each (part, whole)."""
    return " / ".join(f"{part / whole:.0%}" if whole else "-" for part, whole in parts)


def compare(mine: RecommendResponse, other: RecommendResponse, epsilon: float) -> tuple[float, float, bool]:
    """(share of items in both, largest difference of their scores, whether the two answers are equal).

    An item that only one has must score within `epsilon` of the other's last, which is where it fell off.
    """
    scores = [{item.item_id: item.score for item in response.items} for response in (mine, other)]
    common = scores[0].keys() & scores[1].keys()
    difference = max((abs(scores[0][item] - scores[1][item]) for item in common), default=0.0)
    last = [min(each.values(), default=float("-inf")) for each in scores]
    fell_off = all(scores[i][item] <= last[1 - i] + epsilon for i in (0, 1) for item in scores[i].keys() - common)
    equal = difference <= epsilon and fell_off and len(scores[0]) == len(scores[1])
    return len(common) / max(1, len(scores[1])), difference, equal


def _plot(report: Report) -> Plot:
    places = list(dict.fromkeys((row["context"], row["batch"]) for row in report.rows))

    def median(variant: str, place: tuple[object, object]) -> float | None:
        for row in report.rows:
            times = row["warm_ms"]
            if row["variant"] == variant and (row["context"], row["batch"]) == place and isinstance(times, Samples):
                return times.median
        return None

    series = {variant: [median(variant, place) for place in places] for variant in VARIANTS}
    groups = [f"{context} tokens, batch {batch}" for context, batch in places]
    return Plot("Warm requests with one part switched off", "milliseconds, medians", groups, series)
