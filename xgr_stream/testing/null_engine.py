"""An engine without a model: deterministic answers at once, to test and time everything around the device."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice

from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.types import (
    CacheState,
    CatalogUpdate,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    Shortfall,
    Status,
    Unscored,
)

TOKENS_PER_EVENT = 3
BYTES_PER_TOKEN = 64

Work = Sequence[tuple[RecommendRequest, HistoryView | None]]


@dataclass(frozen=True, slots=True)
class NullWarmReport:
    users: int
    tokens: int
    prepared_s: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class NullPendingAnswers:
    responses: list[RecommendResponse]

    def done(self) -> bool:
        return True

    def finish(self) -> list[RecommendResponse]:
        return self.responses


@dataclass(frozen=True, slots=True)
class NullStats:
    users_warm: int
    bytes_used: int
    bytes_budget: int
    beams_dead: int = 0
    invalid_items: int = 0
    tiers: None = None


class NullEngine:
    """Answers with items that depend on the user, their event count and the request alone. They have no tags.

    `before_answer` is called with every batch: a test that wants a slow engine sleeps in it, one that wants a broken
    engine raises.
    """

    def __init__(
        self,
        *,
        num_items: int = 1_000,
        bytes_budget: int = 1 << 30,
        history: HistoryStore | None = None,
        version: str = "null",
    ) -> None:
        """`history`: where the views come from. `version`: what its responses name as their model."""
        self.history = history or HistoryStore()
        self.before_answer: Callable[[Work], None] | None = None
        self.version = version
        self._catalog_version = "null"
        self._gone: set[str] = set()
        self._num_items = num_items
        self._items_known = frozenset(f"item-{row}" for row in range(num_items))
        self._bytes_budget = bytes_budget
        self._resident: dict[str, int] = {}
        self._resident_events = 0

    def answer(self, requests: Work) -> list[RecommendResponse]:
        return self.begin(requests).finish()

    def begin(self, requests: Work) -> NullPendingAnswers:
        if self.before_answer is not None:
            self.before_answer(requests)
        return NullPendingAnswers([self._answer(request, view) for request, view in requests])

    def warm(self, views: Sequence[HistoryView]) -> NullWarmReport:
        tokens = sum(map(self.pending_tokens, views))
        for view in views:
            self._keep(view)
        return NullWarmReport(len(views), tokens)

    def prefilling(self, view: HistoryView, chunk_tokens: int) -> Generator[NullWarmReport, None, None]:
        left = 0 if view.user_id in self._resident else self.pending_tokens(view)
        while left > 0:
            tokens = min(chunk_tokens, left)
            left -= tokens
            if not left:
                self._keep(view)
            yield NullWarmReport(int(not left), tokens)

    def expect(self, views: Sequence[HistoryView]) -> None:
        """There is nothing behind its memory."""

    def pending_tokens(self, view: HistoryView) -> int:
        return max(0, view.event_count - self._resident.get(view.user_id, 0)) * TOKENS_PER_EVENT

    def is_resident(self, user_id: str) -> bool:
        return user_id in self._resident

    def forget(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            self._resident_events -= self._resident.pop(user_id, 0)

    def preparing(self) -> Iterator[None]:
        """It has nothing to prepare."""
        return iter(())

    def close(self) -> None:
        """Nothing is under way between two calls."""

    def stats(self) -> NullStats:
        used = self._resident_events * TOKENS_PER_EVENT * BYTES_PER_TOKEN
        return NullStats(len(self._resident), used, self._bytes_budget)

    def knows_item(self, item_id: str) -> bool:
        """Whether this is one of `item-0` to `item-<num_items - 1>`."""
        return item_id in self._items_known

    @property
    def codes(self) -> tuple[int, ...]:
        return (1 << 20, 10, 10)

    def update_catalog(self, updates: Sequence[CatalogUpdate], position: int) -> None:
        """Of an update it knows whether the item is to be had; nothing else of it counts."""
        for update in updates:
            if update.sid is not None and update.available:
                self._gone.discard(update.item_id)
            else:
                self._gone.add(update.item_id)
        self._catalog_version = f"null+{position}"

    def begin_merge(self) -> None:
        """Nothing is ever to be merged."""

    def _answer(self, request: RecommendRequest, view: HistoryView | None) -> RecommendResponse:
        event_count, event_offset, status, cache = 0, -1, Status.UNKNOWN_USER, CacheState.NONE
        if view is not None:
            event_count, event_offset, status = view.event_count, view.last_offset, Status.OK
            cache = self._cache_state(view)
            self._keep(view)
        unscored: dict[str, Unscored] = {}
        if request.candidates is not None:
            items, unscored = self._scored(request.candidates, known=view is not None)
        else:
            items = self._items(request, event_count, self._excluded(request, view))
        return RecommendResponse(
            request.request_id,
            request.user_id,
            status,
            items,
            event_count=event_count,
            event_offset=event_offset,
            model_version=self.version,
            catalog_version=self._catalog_version,
            cache=cache,
            stages_ms={"append": 0.0, "decode": 0.0},
            tail_computed=view is not None and request.tail is not None,
            shortfall=Shortfall.EXHAUSTED if request.candidates is None and len(items) < request.k else None,
            unscored=unscored,
        )

    def _cache_state(self, view: HistoryView) -> CacheState:
        if view.user_id not in self._resident:
            return CacheState.COLD
        return CacheState.APPENDED if self.pending_tokens(view) else CacheState.WARM

    def _keep(self, view: HistoryView) -> None:
        self._resident_events += view.event_count - self._resident.get(view.user_id, 0)
        self._resident[view.user_id] = view.event_count

    def _excluded(self, request: RecommendRequest, view: HistoryView | None) -> set[str]:
        excluded = self._gone.union(request.filter.exclude)
        if request.filter.seen and view is not None:
            excluded.update(self.history.item_names[item] for item in view.items.tolist())
        return excluded

    def _scored(
        self, item_ids: Sequence[str], *, known: bool
    ) -> tuple[tuple[Recommendation, ...], dict[str, Unscored]]:
        unscored = {item_id: Unscored.UNKNOWN for item_id in item_ids if item_id not in self._items_known}
        unscored |= {i: Unscored.UNAVAILABLE for i in item_ids if i in self._gone and i not in unscored}
        if not known:
            unscored = {item_id: unscored.get(item_id, Unscored.UNKNOWN_USER) for item_id in item_ids}
        rows = [int(item_id.removeprefix("item-")) for item_id in item_ids if item_id not in unscored]
        return tuple(_recommendation(row, rank) for rank, row in enumerate(sorted(rows), start=1)), unscored

    def _items(self, request: RecommendRequest, event_count: int, excluded: set[str]) -> tuple[Recommendation, ...]:
        first = zlib.crc32(request.user_id.encode()) + event_count
        rows: Iterable[int] = (row % self._num_items for row in count(first))
        rows = islice(rows, self._num_items)
        legal = (row for row in rows if f"item-{row}" not in excluded) if excluded else rows
        items = (_recommendation(row, rank) for rank, row in enumerate(islice(legal, request.k), start=1))
        least = request.min_score
        return tuple(items if least is None else (item for item in items if item.score >= least))


@lru_cache(maxsize=1 << 16)
def _recommendation(row: int, rank: int) -> Recommendation:
    return Recommendation(f"item-{row}", -0.5 * rank, (row // 100, row // 10 % 10, row % 10))
