"""`xgr-stream bench appends`: events per second that are added to cached prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import click

from xgr_stream.cli.benches.options import Output, Setting, output_options, setting_options, several
from xgr_stream.cli.benches.plots import Plot
from xgr_stream.cli.benches.report import Report, start
from xgr_stream.cli.benches.samples import Samples, in_a_row_ms, measure, synchronize
from xgr_stream.cli.benches.subject import Subject
from xgr_stream.errors import ConfigError, EngineError

COLUMNS = {
    "prefix": "prefix",
    "users": "users",
    "tokens": "tokens each",
    "step_ms": "ms per step (quartiles, P99)",
    "in_a_row_ms": "ms in a row",
    "events_per_s": "events/s",
    "tokens_per_s": "tokens/s",
}
WARM_UP = 3


@click.command()
@setting_options
@several("--prefix", "Tokens in each user's cached prefix, before the append.  [default: 1000]")
@several("--users", "Users of one append.  [default: 64 and 1]")
@click.option("--tokens", type=click.IntRange(1), help="New tokens of each user, whole events.  [default: one event]")
@click.option(
    "--repeats", type=click.IntRange(1), default=20, show_default=True, help="Timed steps of each kind, after three."
)
@output_options
def appends(
    setting: Setting,
    prefix: tuple[int, ...],
    users: tuple[int, ...],
    tokens: int | None,
    repeats: int,
    output: Output,
) -> None:
    """Time appends: new events of many users, one call, over prefixes that are cached.

    First steps by themselves, from an idle device to an idle device, then as many in a row, each prepared while the
    one before it runs; events/s are theirs. Every step makes the prefixes one append longer; the step in the middle
    finds them as long as --prefix.
    """
    subject = Subject(setting)
    tokens = tokens or subject.event_tokens
    if tokens % subject.event_tokens:
        raise ConfigError(f"--tokens must be whole events of {subject.event_tokens} tokens, not {tokens}")
    report = start("appends", COLUMNS, subject.description(), output)
    for length in prefix or (1000,):
        for count in users or (64, 1):
            report.add(append_row(subject, length, count, tokens // subject.event_tokens, repeats))
    report.finish(output, _plot(report))


def append_row(subject: Subject, prefix: int, count: int, events: int, repeats: int) -> dict[str, object]:
    """One case: `count` users whose prefixes grow by `events` events with each step."""
    steps = WARM_UP + 2 * repeats
    before = events * (WARM_UP + repeats)
    before = max(0, min(before, prefix // subject.event_tokens - 1))
    users = subject.users(count, prefix, before=before, after=events * steps - before)
    engine = subject.engine(users, beam=1)
    engine.warm(users.steps[0])
    views = iter(users.steps[events::events])
    expected = count * events * users.event_tokens

    def step() -> None:
        report = engine.warm(next(views))
        if report.tokens != expected:
            raise EngineError(f"an append must compute {expected} tokens, not {report.tokens}")

    def step_alone() -> None:
        step()
        synchronize(subject.device)

    times = measure(step_alone, subject.device, repeats=repeats, warm_up=WARM_UP)
    each_ms = in_a_row_ms(step, subject.device, repeats=repeats)
    return {
        "prefix": users.context_at(events * (WARM_UP + repeats)),
        "users": count,
        "tokens": events * users.event_tokens,
        "step_ms": times,
        "in_a_row_ms": each_ms,
        "events_per_s": round(count * events / each_ms * 1e3),
        "tokens_per_s": round(expected / each_ms * 1e3),
    }


def _plot(report: Report) -> Plot:
    groups = [f"{row['users']} x {row['tokens']} tokens over {row['prefix']}" for row in report.rows]
    steps: Sequence[float | None] = [
        row["step_ms"].median if isinstance(row["step_ms"], Samples) else None for row in report.rows
    ]
    return Plot("One step of appends", "milliseconds, medians", groups, {"step": steps})
