"""Answers held against what the catalog is to hold, while updates and merges go on among them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle

import numpy as np

from xgr_stream.catalog.columns import ItemColumns, Place
from xgr_stream.engine import Engine
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.errors import EngineError
from xgr_stream.history import HistoryView
from xgr_stream.types import (
    NO_FILTER,
    CatalogUpdate,
    ItemFilter,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    Status,
)

MERGES = 3
"""At least, however few items are asked for."""
GO = 4
"""Items that go before each batch."""
AWAY = 32
"""Items that are away at a time, each for some eight batches."""
DENIED = ItemFilter(deny=("tag-0",))
"""What half of the requests ask for, so that an item with another tag is to come or to go, too."""

Times = list[tuple[float, float]]
"""(on the clock, of its own thread's CPU), seconds."""
Timed = Callable[[Callable[[], object]], tuple[float, float]]


class Truth:
    """What a catalog is to hold at a position of its updates, made of nothing that serves: the table, and each item's
    last update since."""

    def __init__(self, table: ItemColumns) -> None:
        """Its ids are to be numbers, each by one greater than the one before. All items are available."""
        self.position = 0
        self._first = int(table.item_ids[0])
        self._sids = table.sids.copy()
        self._tags = table.tags
        self._places: dict[str, Place | None] = {}
        """Of those that were updated or looked at."""

    def apply(self, updates: Sequence[CatalogUpdate]) -> None:
        for update in updates:
            place = None if update.sid is None else Place(update.sid, update.tags, update.available)
            self._places[update.item_id] = place
        self.position += len(updates)

    def place(self, item_id: str) -> Place | None:
        """None: it has none, or did not get one back since its tombstone."""
        if item_id not in self._places:
            row = int(item_id) - self._first if item_id.isdecimal() else -1
            known = 0 <= row < len(self._sids)
            self._places[item_id] = (
                Place(tuple(self._sids[row].tolist()), self._tags.of_row(row), True) if known else None
            )
        return self._places[item_id]

    def check(self, request: RecommendRequest, response: RecommendResponse) -> None:
        """Raise `EngineError` unless the answer names this position, and all its items are to be had there."""
        version = response.catalog_version
        if response.status is not Status.OK:
            raise EngineError(f"a request was not answered in catalog version {version}: {response.message}")
        position = re.search(r"[+~](\d+)$", version)
        if self.position != (0 if position is None else int(position[1])):
            raise EngineError(f"an answer names catalog version {version}, and {self.position} updates were applied")
        before: set[str] = set()
        for item in response.items:
            wrong = "was recommended before" if item.item_id in before else self._wrong(request.filter, item)
            if wrong is not None:
                raise EngineError(f"item {item.item_id!r} was recommended in catalog version {version} and {wrong}")
            before.add(item.item_id)

    def _wrong(self, asked: ItemFilter, item: Recommendation) -> str | None:
        """With a recommended item; None: nothing."""
        place = self.place(item.item_id)
        if place is None:
            return "is not in it"
        if not place.available:
            return "is not available"
        if place.sid != item.sid:
            return f"has the semantic ID {place.sid}, not {item.sid}"
        return "has a denied tag" if not set(asked.deny).isdisjoint(place.tags) else None


class Updates:
    """Updates of items that were just recommended, and so would be again: others, of millions, no answer would show."""

    def __init__(self, truth: Truth, codes: Sequence[int], random: np.random.Generator) -> None:
        self._truth = truth
        self._last_codes = codes[-1]
        self._random = random
        self._away: deque[CatalogUpdate] = deque()
        """What brings back the items that went, the first to go first."""
        self._launched = 0
        self._kinds = cycle((self._launch, self._move, self._share, self._retag, self._bury))

    def behind(self, recommended: Mapping[str, Recommendation]) -> list[CatalogUpdate]:
        """One at most of each item: some go, some come back once there are enough away, and something else happens."""
        if not recommended:
            return []
        chosen = self._random.permutation(list(recommended))[: GO + 1].tolist()
        updates = [self._away.popleft() for _ in range(len(self._away) - AWAY)]
        for item_id in chosen[1:]:
            there = self._update(item_id)
            updates.append(replace(there, available=False))
            self._away.append(there)
        return updates + next(self._kinds)(self._update(chosen[0]))

    def _update(self, item_id: str) -> CatalogUpdate:
        """That says what the item is now."""
        place = self._truth.place(item_id)
        if place is None:
            raise EngineError(f"item {item_id!r} was recommended and is not in the catalog")
        return CatalogUpdate(item_id, *place)

    def _beside(self, sid: tuple[int, ...] | None) -> tuple[int, ...]:
        """A semantic ID below the same nodes, which most often no item has."""
        return (*(sid or ())[:-1], int(self._random.integers(self._last_codes)))

    def _new(self, sid: tuple[int, ...] | None) -> CatalogUpdate:
        self._launched += 1
        return CatalogUpdate(f"watched-{self._launched}", sid)

    def _launch(self, there: CatalogUpdate) -> list[CatalogUpdate]:
        return [self._new(self._beside(there.sid))]

    def _share(self, there: CatalogUpdate) -> list[CatalogUpdate]:
        """Two new items get its semantic ID, too."""
        return [self._new(there.sid), self._new(there.sid)]

    def _move(self, there: CatalogUpdate) -> list[CatalogUpdate]:
        return [replace(there, sid=self._beside(there.sid))]

    def _retag(self, there: CatalogUpdate) -> list[CatalogUpdate]:
        denied = tuple(tag for tag in DENIED.deny if isinstance(tag, str))
        return [replace(there, tags=() if there.tags == denied else denied)]

    def _bury(self, there: CatalogUpdate) -> list[CatalogUpdate]:
        """A tombstone, and a place again later."""
        self._away.append(there)
        return [CatalogUpdate(there.item_id, None)]


class Merges:
    """One merge behind the other on a thread of their own; what belongs between two batches is done there."""

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor, timed: Timed) -> None:
        self.runs: Times = []
        self.swaps: Times = []
        self._engine = engine
        self._thread = thread
        self._timed = timed
        self._merge: CatalogMerge | None = None
        self._under_way: Future[None] | None = None

    def between_batches(self) -> None:
        """As a worker does: hand over what came meanwhile, swap, begin the next one."""
        if self._under_way is not None:
            if not self._under_way.done():
                return
            self._under_way.result()
        done = self._merge
        if done is not None:
            came = done.handed_over()
            if came:
                self._under_way = self._thread.submit(done.follow, came)
                return
            self.swaps.append(self._timed(done.finish))
        self._merge = self._engine.begin_merge()
        idle = done is None and self._merge is None
        self._under_way = None if idle else self._thread.submit(self._run, done, self._merge)

    def settle(self) -> None:
        """Merge all that waits."""
        self.between_batches()
        while self._under_way is not None:
            self._under_way.result()
            self.between_batches()

    def _run(self, done: CatalogMerge | None, merge: CatalogMerge | None) -> None:
        if done is not None:
            done.discard()
        if merge is not None:
            self.runs.append(self._timed(merge.run))


@dataclass(slots=True)
class Watched:
    """What was seen, none of it wrong."""

    items: int = 0
    updates: int = 0
    batches: Times = field(default_factory=list)
    merges: Times = field(default_factory=list)
    swaps: Times = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.items:,} items recommended in {len(self.batches):,} batches, {self.updates:,} updates and "
            f"{len(self.swaps):,} merges among them: each was there in the version that its answer names"
        )


def watch(
    engine: Engine,
    requests: Sequence[tuple[RecommendRequest, HistoryView | None]],
    items: int,
    *,
    timed: Timed,
    random: np.random.Generator,
) -> Watched:
    """Batches until so many items are recommended and a few merges done: updates before each, merges beside them. The
    engine has had no updates. Raises `EngineError` for an answer that was wrong."""
    truth, watched = Truth(engine.catalog.columns), Watched()
    updates = Updates(truth, engine.codes, random)
    recommended: dict[str, Recommendation] = {}
    with ThreadPoolExecutor(1, "xgr-merge") as thread:
        merges = Merges(engine, thread, timed)
        watched.merges, watched.swaps = merges.runs, merges.swaps
        while watched.items < items or len(merges.swaps) < MERGES:
            came = updates.behind(recommended)
            truth.apply(came)
            engine.update_catalog(came, truth.position)
            asked = _half_denied(requests, len(watched.batches))
            responses: list[RecommendResponse] = []
            watched.batches.append(timed(lambda into=responses, of=asked: into.extend(engine.answer(of))))  # type: ignore[misc]
            for (request, _), response in zip(asked, responses, strict=True):
                truth.check(request, response)
                watched.items += len(response.items)
            recommended = {item.item_id: item for response in responses for item in response.items}
            merges.between_batches()
        merges.settle()
    watched.updates = truth.position
    return watched


def _half_denied(
    requests: Sequence[tuple[RecommendRequest, HistoryView | None]], number: int
) -> list[tuple[RecommendRequest, HistoryView | None]]:
    """Every other request with a filter; in the next batch the others."""
    return [
        (replace(request, filter=DENIED if (place + number) % 2 else NO_FILTER), view)
        for place, (request, view) in enumerate(requests)
    ]
