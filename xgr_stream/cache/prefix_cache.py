"""Which users are warm, in pages of one pool, and who makes room for whom."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from xgr_stream.cache.pool import PagePool
from xgr_stream.cache.prefix import Draft, UserPrefix
from xgr_stream.cache.references import IntArray, ReferenceCounts
from xgr_stream.errors import EngineError

_T = TypeVar("_T")


class PrefixCache:
    """User → `UserPrefix`, at most as many as the pool's pages hold. Used by one thread.

    Eviction is GreedyDual: a user's worth is what a page of theirs would cost to compute again, plus the worth at
    which the last user was evicted when they were last seen. So the costly stay longer, and nobody stays for ever;
    no clock is needed, and equal histories of calls evict equal users.
    """

    def __init__(self, pool: PagePool, hidden_size: int, *, rebuild_cost: Callable[[int], float]) -> None:
        """`rebuild_cost(num_tokens)`: what prefilling that many tokens costs, in any unit."""
        self.pool = pool
        # A user has at least one page and one slot, and at most one more slot while their next prefix is drafted; a
        # fork has a page and a slot of its own.
        self._slots = ReferenceCounts("hidden slots", 2 * pool.num_pages)
        self.unread_slot = 2 * pool.num_pages
        """A row of `hidden` that nobody reads: where an append's padding goes."""
        self.hidden = torch.zeros(2 * pool.num_pages + 1, hidden_size, dtype=pool.k.dtype, device=pool.k.device)
        """Last hidden states, after the final norm. [slots + 1, hidden]"""
        self.num_evicted = 0
        self.settle: Callable[[], None] = lambda: None
        """Called when pins keep a draft from its memory: returns once those that end by themselves have ended."""
        self._rebuild_cost = rebuild_cost
        self._prefixes: dict[str, UserPrefix] = {}
        self._worth: dict[str, float] = {}
        # A heap with one entry per user, at a worth they had once: a popped entry that is outdated goes back in, one
        # of a user who was dropped goes away.
        self._queue: list[tuple[float, str]] = []
        self._queued: set[str] = set()
        self._level = 0.0
        self._pins: Counter[UserPrefix] = Counter()
        self._lingering: set[UserPrefix] = set()
        self._pinned_users: Counter[str] = Counter()
        self._drafts = 0

    def __len__(self) -> int:
        return len(self._prefixes)

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._prefixes

    @property
    def bytes_used(self) -> int:
        return (self.pool.num_pages - self.pool.num_free) * self.pool.bytes_per_page

    @property
    def bytes_budget(self) -> int:
        return self.pool.num_pages * self.pool.bytes_per_page

    def get(self, user_id: str) -> UserPrefix | None:
        return self._prefixes.get(user_id)

    def touch(self, user_id: str) -> UserPrefix:
        """The user's prefix; they were seen, so their worth counts from now."""
        prefix = self._prefixes[user_id]
        self._worth[user_id] = self._level + self._rebuild_cost(prefix.num_tokens) / len(prefix.pages)
        return prefix

    def draft(self, base: UserPrefix | None, kv_tokens: int) -> Draft:
        """Memory for a prefix of `kv_tokens` tokens that begins like `base`, whose pages it shares; others are
        evicted to make room, the least worthy first, pinned ones never. Raises `EngineError` if that is not enough.
        """
        count = self.pool.pages_for(kv_tokens)
        return self._draft(np.empty(0, dtype=np.int32) if base is None else base.pages[:count], count)

    def fork(self, base: UserPrefix, num_tokens: int, kv_tokens: int) -> Draft:
        """Memory for a prefix of `kv_tokens` tokens, of which the first `num_tokens` are those of `base`: full pages
        are shared, a partly filled one is copied, so that whatever is written behind them leaves `base` as it is.
        Pin `base` meanwhile. Makes room and raises as `draft` does."""
        full = num_tokens // self.pool.page_size
        draft = self._draft(base.pages[:full], self.pool.pages_for(kv_tokens))
        if num_tokens % self.pool.page_size:
            self.pool.copy(int(base.pages[full]), int(draft.pages[full]))
        return draft

    def _draft(self, shared: IntArray, count: int) -> Draft:
        """Memory of `count` pages, the first of them `shared`."""
        self.pool.retain(shared)
        try:
            self._make_room(count - len(shared))
            fresh = self.pool.allocate(count - len(shared))
        except EngineError:
            self.pool.release(shared)
            raise
        self._drafts += 1
        return Draft(np.concatenate((shared, fresh)), self._slots.allocate(1))

    def publish(self, prefix: UserPrefix) -> None:
        """Make a drafted prefix the user's; it replaces the one that they had."""
        old = self._prefixes.get(prefix.user_id)
        self._prefixes[prefix.user_id] = prefix
        self._drafts -= 1
        self.touch(prefix.user_id)
        if old is not None:
            self._release(old)
        if prefix.user_id not in self._queued:
            self._enqueue(prefix.user_id)

    def renumber(self, user_id: str, event_count: int, event_offset: int, items: IntArray) -> UserPrefix:
        """The user's prefix covers further events, which brought no tokens; `items` of all that are kept. Returns the
        new snapshot."""
        old = self._prefixes[user_id]
        prefix = replace(old, event_count=event_count, event_offset=event_offset, items=items)
        self._prefixes[user_id] = prefix
        if old in self._pins:  # each has the memory to itself
            self.pool.retain(old.pages)
            self._slots.retain(old.hidden_slot)
            self._lingering.add(old)
        return prefix

    def abandon(self, draft: Draft) -> None:
        """Give back a draft that will not be published."""
        self.pool.release(draft.pages)
        self._slots.release(draft.hidden_slot)
        self._drafts -= 1

    def drop(self, user_ids: Iterable[str]) -> None:
        """Forget these users' prefixes; memory that a pin holds is free when the pin goes."""
        for user_id in user_ids:
            prefix = self._prefixes.pop(user_id, None)
            if prefix is not None:
                self._release(prefix)
                del self._worth[user_id]
        if len(self._queue) > 2 * len(self._prefixes) + 64:
            self._queue = [(worth, user_id) for user_id, worth in self._worth.items()]
            self._queued = set(self._worth)
            heapq.heapify(self._queue)

    @contextmanager
    def pinned(self, prefixes: Sequence[UserPrefix]) -> Iterator[None]:
        """Within, these snapshots' memory stays, and their users are not evicted."""
        for prefix in prefixes:
            self.pin(prefix)
        try:
            yield
        finally:
            for prefix in prefixes:
                self.unpin(prefix)

    def pin(self, prefix: UserPrefix) -> None:
        """The prefix must be the user's, or pinned already."""
        self._pins[prefix] += 1
        self._pinned_users[prefix.user_id] += 1

    def unpin(self, prefix: UserPrefix) -> None:
        _decrement(self._pinned_users, prefix.user_id)
        _decrement(self._pins, prefix)
        if prefix in self._lingering and prefix not in self._pins:
            self._lingering.remove(prefix)
            self._give_back(prefix)

    def _release(self, prefix: UserPrefix) -> None:
        """The user has this prefix no more: its memory is free once no pin holds it."""
        if prefix in self._pins:
            self._lingering.add(prefix)
        else:
            self._give_back(prefix)

    def _give_back(self, prefix: UserPrefix) -> None:
        self.pool.release(prefix.pages)
        self._slots.release(prefix.hidden_slot)

    def _enqueue(self, user_id: str) -> None:
        heapq.heappush(self._queue, (self._worth[user_id], user_id))
        self._queued.add(user_id)

    def _make_room(self, num_pages: int) -> None:
        """Evict until `num_pages` pages are free; if pinned users are in the way, once more when work under way, which
        holds snapshots' pages and slots, is done."""
        self._evict(num_pages)
        if self.pool.num_free < num_pages or not self._slots.num_free:
            self.settle()
            self._evict(num_pages)

    def _evict(self, num_pages: int) -> None:
        """Evict until `num_pages` pages are free or nobody but pinned users is left."""
        spared = []
        while self.pool.num_free < num_pages and self._queue:
            entry_worth, user_id = heapq.heappop(self._queue)
            self._queued.remove(user_id)
            worth = self._worth.get(user_id)
            if worth is None:
                continue
            if worth > entry_worth:
                self._enqueue(user_id)
            elif user_id in self._pinned_users:
                spared.append(user_id)
            else:
                self._level = max(self._level, worth)
                self._release(self._prefixes.pop(user_id))
                del self._worth[user_id]
                self.num_evicted += 1
        for user_id in spared:
            self._enqueue(user_id)

    def check_integrity(self) -> None:
        """Raise `EngineError` unless pages, slots and the eviction queue agree with the prefixes and pins. Call
        between batches, when no draft is open."""
        if self._drafts:
            raise EngineError(f"{self._drafts} drafts were neither published nor abandoned")
        if sorted(user_id for _, user_id in self._queue) != sorted(self._queued):
            raise EngineError("the eviction queue names a user twice")
        if not self._queued >= set(self._prefixes) == set(self._worth):
            raise EngineError("a resident user is missing from the eviction queue, or a dropped one has a worth")
        page_holders = np.zeros(self.pool.num_pages, dtype=np.int32)
        slot_holders = np.zeros(self._slots.size, dtype=np.int32)
        for prefix in (*self._prefixes.values(), *self._lingering):
            if len(prefix.pages) != self.pool.pages_for(prefix.kv_tokens):
                raise EngineError(f"user {prefix.user_id!r}: {len(prefix.pages)} pages for {prefix.kv_tokens} tokens")
            page_holders[prefix.pages] += 1
            slot_holders[prefix.hidden_slot] += 1
        self.pool.check_integrity(page_holders)
        self._slots.check_integrity(slot_holders)


def _decrement(counter: Counter[_T], key: _T) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
