"""`xgr-stream bench catalog`: what changes of the catalog take, and what they do to the batches beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from time import perf_counter, thread_time

import click
import numpy as np
import torch

from xgr_stream.cli.benches.catalog_watch import Times, Watched, watch
from xgr_stream.cli.benches.options import Output, chosen, device_option, output_options, several
from xgr_stream.cli.benches.report import environment, start
from xgr_stream.cli.benches.samples import collect_as_a_worker, synchronize
from xgr_stream.cli.benches.subject import pages_for
from xgr_stream.config import CacheConfig, EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.engine.sizing import page_bytes
from xgr_stream.errors import ConfigError, EngineError
from xgr_stream.history import HistoryView
from xgr_stream.model import Model
from xgr_stream.scheduler.switch_interval import restore_switch_interval, shorten_switch_interval
from xgr_stream.testing.shapes import SHAPES, random_catalog, random_model
from xgr_stream.types import NO_FILTER, CacheState, CatalogUpdate, ItemFilter, RecommendRequest

COLUMNS = {"what": "what", "times": "times", "median_ms": "median ms", "max_ms": "max ms", "cpu_ms": "CPU ms"}
TAGS = 100
"""Of which each item has one."""
IN_A_ROW = "batches in a row, each begun while the one before runs"
AT_A_TIME = 5
"""Batches with the same filters, before it is the next ones' turn."""
APART_S = 0.002
"""Between two batches: a device thread is not busy all the time."""


@click.command()
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="tiny", show_default=True)
@device_option
@click.option("--items", type=click.IntRange(100), default=1_500_000, show_default=True)
@click.option("--codes", type=click.IntRange(2), default=8_192, show_default=True, help="Per level, of 3 levels.")
@click.option("--flips", type=click.IntRange(1), default=10_000, show_default=True, help="Applied together.")
@click.option("--new", type=click.IntRange(1), default=100_000, show_default=True, help="New semantic IDs to merge.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Warm requests in a batch.")
@click.option("--events", type=click.IntRange(1), default=100, show_default=True, help="Of each user's history.")
@click.option("--beam", type=click.IntRange(1, 1024), default=64, show_default=True)
@several("--excluded", "Items that each request excludes.  [default: 100]")
@click.option("--recommended", type=click.IntRange(1), default=100_000, show_default=True, help="Items, among updates.")
@click.option("--repeats", type=click.IntRange(1), default=30, show_default=True)
@output_options
def catalog(
    shape: str,
    device: str | None,
    items: int,
    codes: int,
    flips: int,
    new: int,
    batch: int,
    events: int,
    beam: int,
    excluded: tuple[int, ...],
    recommended: int,
    repeats: int,
    output: Output,
) -> None:
    """Warm batches without and with filters; a tag that nobody asked for before, until the device has its masks; items
    recommended while updates and merges go on, each of which must be there in the version that its answer names.
    Availability flips, one and many, until the device has them;
    new items and such with another tag, one by one, until they are recommended; a merge of new semantic IDs on a thread
    of its own; and warm batches without one and beside it, on the device thread's terms."""
    at = chosen(device)
    if max(excluded, default=0) >= items:
        raise ConfigError(f"--excluded must be less than the {items} items, not {max(excluded)}")
    if flips > items:
        raise ConfigError(f"--flips must be at most the {items} items, not {flips}")
    torch.set_num_threads(1)
    model = random_model(shape, (codes,) * 3, device=at, dtype=torch.bfloat16 if at.type == "cuda" else torch.float32)
    config = EngineConfig(
        device=str(at), beam_width=beam, window=WindowConfig(max_events=events), cache=_cache_of(model, batch, events)
    )
    engine = Engine.load(model, random_catalog((codes,) * 3, items, tags=TAGS), config=config)
    setting = {"shape": shape, "items": items, "codes": f"3 x {codes}", "batch": batch, "events": events, "beam": beam}
    report = start("catalog", COLUMNS, {**setting, **environment(at)}, output)
    bench = _Bench(engine, at, batch, events)
    filters: dict[str, list[ItemFilter]] = {"": [], **bench.filters(excluded or (100,))}
    with _switching():
        bench.warm_up()
        collect_as_a_worker()
        for what, times in bench.in_turn(bench.alone, filters, repeats).items():
            report.add(_row(f"the same, {what}" if what else "a batch of warm requests", times))
        for what, times in bench.in_turn(bench.in_a_row, filters, repeats).items():
            report.add(_row(f"in a row, {what}" if what else IN_A_ROW, times))
        report.add(_row("a new tag, and its masks", bench.repeat(bench.new_tag, min(repeats, TAGS // 2))))
        watched = bench.watched(recommended)
        report.add(_row("a batch of as many items as beams, behind updates and beside merges", watched.batches))
        report.add(_row("a merge beside these", watched.merges))
        report.add(_row("its swap", watched.swaps))
        report.notes.append(str(watched))
        report.add(_row("one flip, until the device has it", bench.repeat(lambda: bench.flip(1), repeats)))
        report.add(
            _row(
                f"{flips} flips, until the device has them",
                bench.repeat(lambda: bench.flip(flips), max(3, repeats // 5)),
            )
        )
        report.add(_row("a batch of warm requests behind a flip", bench.repeat(bench.answer_behind_a_flip, repeats)))
        bench.launch_one()()  # has the mask of its tag made
        report.add(_row("one new item, until it is recommended", bench.repeat(bench.launch_one, repeats)))
        report.add(_row("one item with another tag, until it is recommended", bench.repeat(bench.retag_one, repeats)))
        report.add(_row("a batch of warm requests beside such items", bench.repeat(lambda: bench.answer, repeats)))
        merge, launching = bench.launch(new)
        report.add(_row(f"{new} new ones taken in, 256 at a time", launching))
        beside, run = bench.beside(merge)
        report.add(_row("the merge, beside them", [run]))
        report.add(_row("batches beside it", beside))
        report.add(_row("the swap", bench.repeat(lambda: merge.finish, 1)))
        report.add(_row("the first batch behind it", bench.repeat(lambda: bench.answer, 1)))
    engine.check_integrity()
    report.finish(output)


def _cache_of(model: Model, users: int, events: int) -> CacheConfig:
    """Room for so many users of so many events each."""
    cache = CacheConfig()
    pages = pages_for(users, model.tokens.context_tokens(events), cache.page_size)
    return replace(cache, budget_bytes=pages * page_bytes(model, cache))


class _Bench:
    def __init__(self, engine: Engine, device: torch.device, batch: int, events: int) -> None:
        self._engine = engine
        self._device = device
        random = np.random.default_rng(0)
        self._random = random
        catalog = engine.catalog
        for user in range(batch):
            rows = random.integers(0, catalog.num_items, events).tolist()
            engine.append(f"user-{user}", [catalog.item_ids[row] for row in rows])
        views = [engine.history.view(f"user-{user}") for user in range(batch)]
        self._requests = [(RecommendRequest("r", f"user-{user}"), view) for user, view in enumerate(views)]
        self._position = 0
        self._table_rows = catalog.num_items
        """Of which each has a place whatever comes."""
        self._tag = 1
        self._launched = 0
        self._to_be_had = False

    def warm_up(self) -> None:
        """Raises `EngineError` unless all users are warm then."""
        self.answer()
        states = {response.cache for response in self._engine.answer(self._requests)}
        if states != {CacheState.WARM}:
            raise EngineError(f"all users must be warm, and they are {', '.join(sorted(states))}")

    def answer(self, filters: Sequence[ItemFilter] = ()) -> None:
        """`filters`: one for each request, or none at all."""
        self._engine.answer(self._filtered(filters))

    def in_turn(
        self, measure: Callable[[int, list[ItemFilter]], Times], filters: Mapping[str, list[ItemFilter]], times: int
    ) -> dict[str, Times]:
        """So many times with each of these filters, in rounds, each round in another order: a machine whose speed
        changes slows all of them."""
        found: dict[str, Times] = {what: [] for what in filters}
        left = times
        while left:
            own = min(AT_A_TIME, left)
            for place in self._random.permutation(len(filters)).tolist():
                what = list(filters)[place]
                found[what] += measure(own, filters[what])
            left -= own
        return found

    def alone(self, times: int, filters: Sequence[ItemFilter]) -> Times:
        return self.repeat(lambda: partial(self.answer, filters), times)

    def in_a_row(self, times: int, filters: Sequence[ItemFilter]) -> Times:
        """From one batch's answers to the next one's, which was begun meanwhile, as a device thread does."""
        requests, ends = self._filtered(filters), []
        under_way = self._engine.begin(requests)
        for _ in range(times + 1):
            begun = self._engine.begin(requests)
            under_way.finish()
            ends.append((perf_counter(), thread_time()))
            under_way = begun
        under_way.finish()
        return [(end - begin, cpu_end - cpu_begin) for (begin, cpu_begin), (end, cpu_end) in pairwise(ends)]

    def _filtered(self, filters: Sequence[ItemFilter]) -> list[tuple[RecommendRequest, HistoryView | None]]:
        each = zip(self._requests, filters or [NO_FILTER] * len(self._requests), strict=True)
        return [(replace(request, filter=item_filter), view) for (request, view), item_filter in each]

    def filters(self, excluded: Sequence[int]) -> dict[str, list[ItemFilter]]:
        """Of each request its own; those that exclude items, of other items each."""
        ids, requests = self._engine.catalog.item_ids, len(self._requests)

        def excluding(count: int) -> list[ItemFilter]:
            draws = [self._random.choice(len(ids), count, replace=False).tolist() for _ in range(requests)]
            return [ItemFilter.of([ids[row] for row in rows], (), (), False) for rows in draws]

        return {
            **{f"{count} items excluded by each": excluding(count) for count in excluded},
            "a tag allowed": [ItemFilter.of((), ("tag-0",), (), False)] * requests,
            "a tag denied, what was seen too": [ItemFilter.of((), (), ("tag-1",), True)] * requests,
        }

    def new_tag(self) -> Callable[[], None]:
        self._tag += 1
        return partial(self._engine.bring_legality, ItemFilter.of((), (f"tag-{self._tag}",), (), False))

    def watched(self, items: int) -> Watched:
        """So many items, as many in each answer as beams, while others come and go. The first that updates anything."""
        beam = self._engine.config.beam_width
        requests = [(replace(request, k=beam), view) for request, view in self._requests]
        found = watch(self._engine, requests, items, timed=self._timed, random=self._random)
        self._position = found.updates
        return found

    def answer_behind_a_flip(self) -> Callable[[], None]:
        self.flip(1)()
        return self.answer

    def flip(self, count: int) -> Callable[[], None]:
        """To be called to let other items go each time, or come back."""
        catalog = self._engine.catalog
        rows = self._random.choice(self._table_rows, count, replace=False)
        ids, sids = [catalog.item_ids[row] for row in rows.tolist()], map(tuple, catalog.sids[rows].tolist())
        places = zip(ids, sids, catalog.columns.tags.of_rows(rows), strict=True)
        updates = [CatalogUpdate(*place, self._to_be_had) for place in places]
        self._to_be_had = not self._to_be_had

        def apply() -> None:
            self._update(updates)
            self._engine.bring_legality()

        return apply

    def launch_one(self) -> Callable[[], None]:
        """To be called to have a new item, and a batch that finds it. Raises `EngineError` if it does not."""
        return self._launch(f"launched-{self._launched}", self._sids(1)[0])

    def retag_one(self) -> Callable[[], None]:
        """The same with one that is there and gets the new one's tag."""
        catalog = self._engine.catalog
        row = int(self._random.integers(self._table_rows))
        return self._launch(catalog.item_ids[row], tuple(catalog.sids[row].tolist()))

    def _launch(self, item_id: str, sid: tuple[int, ...]) -> Callable[[], None]:
        """Found among all that were launched."""
        self._launched += 1
        launched = ItemFilter.of((), ("launched",), (), False)
        wanted = [(replace(request, k=self._launched, filter=launched), view) for request, view in self._requests]

        def recommend() -> None:
            self._update([CatalogUpdate(item_id, sid, ("launched",))])
            for response in self._engine.answer(wanted):
                if item_id not in {item.item_id for item in response.items}:
                    raise EngineError("a launched item was not recommended")

        return recommend

    def _sids(self, count: int) -> list[tuple[int, ...]]:
        drawn = np.stack([self._random.integers(0, most, count) for most in self._engine.codes], axis=1)
        return list(map(tuple, drawn.tolist()))

    def launch(self, count: int) -> tuple[CatalogMerge, Times]:
        updates = [CatalogUpdate(f"new-{number}", sid) for number, sid in enumerate(self._sids(count))]
        times = [
            self._timed(lambda first=first: self._update(updates[first : first + 256]))  # type: ignore[misc]
            for first in range(0, count, 256)
        ]
        merge = self._engine.begin_merge()
        if merge is None:
            raise click.ClickException("--new must bring semantic IDs that are new")
        return merge, times

    def beside(self, merge: CatalogMerge) -> tuple[Times, tuple[float, float]]:
        """Batches while the merge runs, one at least, and the merge."""
        run: Times = []
        thread = threading.Thread(target=lambda: run.append(self._timed(merge.run)), name="xgr-merge")
        thread.start()
        times = [self._timed(self.answer)]
        while thread.is_alive():
            thread.join(APART_S)
            times.append(self._timed(self.answer))
        return times, run[0]

    def repeat(self, make: Callable[[], Callable[[], object]], times: int) -> Times:
        """Times of what `make` makes, each time anew; the making is not timed."""
        return [self._timed(make()) for _ in range(times)]

    def _timed(self, call: Callable[[], object]) -> tuple[float, float]:
        synchronize(self._device)
        started = perf_counter(), thread_time()
        call()
        synchronize(self._device)
        return perf_counter() - started[0], thread_time() - started[1]

    def _update(self, updates: list[CatalogUpdate]) -> None:
        self._position += len(updates)
        self._engine.update_catalog(updates, self._position)


def _row(what: str, times: Times) -> dict[str, object]:
    wall, cpu = (np.array(column) * 1e3 for column in zip(*times, strict=True))
    found = {"median_ms": np.median(wall), "max_ms": wall.max(), "cpu_ms": np.median(cpu)}
    return {"what": what, "times": len(times), **{name: round(float(value), 3) for name, value in found.items()}}


@contextmanager
def _switching() -> Iterator[None]:
    """As often as a worker has its threads switch."""
    shorten_switch_interval()
    try:
        yield
    finally:
        restore_switch_interval()
