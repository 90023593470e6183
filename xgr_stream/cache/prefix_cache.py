"""Which users are warm, in pages of one pool, and who makes room for whom."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from xgr_stream.cache.host_tier import Demotion, HostTier
from xgr_stream.cache.pool import PagePool
from xgr_stream.cache.prefix import AHEAD, Draft, UserPrefix, ahead_of
from xgr_stream.cache.references import IntArray, SlotCounts
from xgr_stream.cache.worth import Worth, WorthQueue
from xgr_stream.errors import EngineError

_T = TypeVar("_T")

_NO_PAGES: IntArray = np.empty(0, np.int32)


class PrefixCache:
    """User → `UserPrefix`, at most as many as the pool's pages hold. Used by one thread.

    Who makes room is decided by `worth`, a page's share of what it would cost to have the prefix again. With a `host`
    tier, the next to be turned out are named ahead of need (`next_leaving`), so that copies of them can be made
    before their pages are wanted: to turn them out then costs nothing and waits for nothing.
    """

    def __init__(
        self,
        pool: PagePool,
        hidden_size: int,
        *,
        worth: Worth,
        restore_cost: Callable[[int, int], float],
        hidden_dtype: torch.dtype | None = None,
    ) -> None:
        """`restore_cost(num_tokens, copied_tokens)`: what it costs to have a prefix of so many tokens again, of which
        so many are in a lower tier; above 0, in any unit. `hidden_dtype`: what the model computes in; None: what the
        pages are in."""
        self.pool = pool
        self.host: HostTier | None = None
        """Where copies of prefixes are; to be set before there are any prefixes."""
        # A user has at least one page and one slot, and at most one more slot while their next prefix is drafted; a
        # fork has a page and a slot of its own.
        self._slots = SlotCounts("hidden slots", 2 * pool.num_pages)
        self.unread_slot = 2 * pool.num_pages
        """A row of `hidden` that nobody reads: where an append's padding goes."""
        self.hidden = torch.zeros(
            2 * pool.num_pages + 1, hidden_size, dtype=hidden_dtype or pool.k.dtype, device=pool.k.device
        )
        """Last hidden states, after the final norm. [slots + 1, hidden]"""
        self.num_evicted = 0
        self.reap: Callable[[], None] = lambda: None
        """Called when there is no room: ends the pins of work that is done."""
        self.settle: Callable[[], None] = lambda: None
        """Called when pins keep a draft from its memory: returns once those that end by themselves have ended."""
        self.worth = worth
        self._restore_cost = restore_cost
        self._prefixes: dict[str, UserPrefix] = {}
        self._queue = WorthQueue()
        self._leaving: dict[str, None] = {}
        """The next to be turned out, in order; the rest is queued."""
        self._leaving_pages = 0
        self._pins: defaultdict[UserPrefix, int] = defaultdict(int)
        self._lingering: set[UserPrefix] = set()
        self._pinned_users: defaultdict[str, int] = defaultdict(int)
        self._drafts = 0
        self._num_ahead = 0

    def __len__(self) -> int:
        """Users; whose next window is there too counts once."""
        return len(self._prefixes) - self._num_ahead

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

    def __getitem__(self, user_id: str) -> UserPrefix:
        return self._prefixes[user_id]

    def touch(self, user_id: str, *, counted: bool = False) -> UserPrefix:
        """The user's prefix; they were seen, so their worth counts from now. `counted`: `worth` knows of it."""
        if not (counted or user_id.endswith(AHEAD)):
            self.worth.seen(user_id)
        self._stay(user_id)
        return self._prefixes[user_id]

    def would_keep(self, user_id: str, num_tokens: int, kv_tokens: int) -> bool:
        """Whether a prefix that is brought back from the host tier finds room at hand, without waiting for anything,
        and is worth more than those who would go for it."""
        pages, at_hand = self.pool.pages_for(kv_tokens), self.pool.num_free
        worth = self.worth.of(user_id, self._restore_cost(num_tokens, num_tokens) / pages)
        for other in self._leaving:
            if at_hand >= pages:
                break
            if other not in self._pinned_users:
                prefix = self._prefixes[other]
                if self._worth_of(prefix) >= worth:
                    return False
                at_hand += len(prefix.pages)
        return at_hand >= pages and bool(self._slots.num_free)

    @property
    def pages_at_hand(self) -> int:
        """Pages that are free, or whose users are among the next to be turned out."""
        return self.pool.num_free + self._leaving_pages

    def next_leaving(self) -> UserPrefix | None:
        """Of the users who are not pinned, the least worthy, from now on among the next to be turned out unless they
        are seen before. None: there are no others."""
        spared = []
        found = None
        while found is None and (entry := self._queue.pop()) is not None:
            worth, user_id = entry
            if user_id in self._pinned_users:
                spared.append(entry)
            else:
                found = self._prefixes[user_id]
                self._leaving[user_id] = None
                self._leaving_pages += len(found.pages)
                if self.host is not None:
                    self.host.leaving(user_id)
        for worth, user_id in spared:
            self._queue.put(user_id, worth)
        return found

    def copies_ahead(self, reserve_pages: int, worth_copying: Callable[[int], bool]) -> Iterator[Demotion]:
        """Copies to be made of the next to be turned out, until so many pages are at hand. `worth_copying(num_tokens)`:
        of the others no copy is made, and of next windows neither."""
        while self.host is not None and self.pages_at_hand < reserve_pages:
            prefix = self.next_leaving()
            if prefix is None:
                return
            worth_it = worth_copying(prefix.num_tokens) and not prefix.user_id.endswith(AHEAD)
            demotion = self.host.begin(prefix) if worth_it else None
            if demotion is not None:
                yield demotion

    def draft(self, base: UserPrefix | None, kv_tokens: int) -> Draft:
        """Memory for a prefix of `kv_tokens` tokens that begins like `base`, whose pages it shares; others are
        evicted to make room, the least worthy first, pinned ones never. `base` must be pinned until the draft is
        published or abandoned; that pin holds nothing any more then, and whoever reads the base has one of their own.
        Raises `EngineError` if there is not enough room."""
        count = self.pool.pages_for(kv_tokens)
        return self._draft(base, count, count)

    def fork(self, base: UserPrefix, num_tokens: int, kv_tokens: int) -> Draft:
        """Memory for a prefix of `kv_tokens` tokens, of which the first `num_tokens` are those of `base`: full pages
        are shared, a partly filled one is copied, so that whatever is written behind them leaves `base` as it is.
        Asks for the same pin as `draft`, makes room and raises as it does."""
        full = num_tokens // self.pool.page_size
        draft = self._draft(base, full, self.pool.pages_for(kv_tokens))
        if num_tokens % self.pool.page_size:
            try:
                self.pool.copy(int(base.pages[full]), int(draft.pages[full]))
            except BaseException:
                self.abandon(draft)
                raise
        return draft

    def _draft(self, base: UserPrefix | None, most_shared: int, count: int) -> Draft:
        """Memory of `count` pages, the first of them, at most so many, those of `base`."""
        shared = _NO_PAGES if base is None else base.pages[:most_shared]
        missing = count - len(shared)
        self._make_room(missing)
        pages = np.concatenate((shared, np.empty(missing, np.int32))) if missing else shared
        draft = Draft(pages, len(shared), self._slots.allocate(), base)
        if missing:
            try:
                pages[len(shared) :] = self.pool.allocate(missing)
            except BaseException:
                self._slots.release(draft.hidden_slot)
                raise
        self._drafts += 1
        return draft

    def publish(self, prefix: UserPrefix, draft: Draft, *, restored: bool = False) -> None:
        """Make a drafted prefix the user's; it replaces the one that they had. `restored`: it is the copy in the host
        tier, of which any other that does not go on from the user's prefix makes an end."""
        user_id = prefix.user_id
        old = self._prefixes.get(user_id)
        inherits = self._inherits(draft, old)
        if not inherits:
            self.pool.retain(draft.pages[: draft.num_shared])
        if self.host is not None and not restored and (old is None or old.pages[0] != prefix.pages[0]):
            self.host.discard(user_id)
        self._forget_place(user_id)
        self._prefixes[user_id] = prefix
        self._drafts -= 1
        self._num_ahead += old is None and user_id.endswith(AHEAD)
        self._stay(user_id)
        if old is not None:
            if inherits:
                self._slots.release(old.hidden_slot)
            else:
                self._release(old)

    def _inherits(self, draft: Draft, old: UserPrefix | None) -> bool:
        """Whether the draft takes its base's place in all of its pages, as most appends do, which no other pin holds:
        then nothing is to be counted."""
        if old is None or draft.base is not old:
            return False
        return draft.num_shared == len(old.pages) and self._pins.get(old, 0) <= 1

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

    def evict(self, user_id: str) -> None:
        """Turn this user out, who is not pinned; a copy of theirs stays in the host tier."""
        self._evict(user_id, self._worth_of(self._prefixes[user_id]))

    def abandon(self, draft: Draft) -> None:
        """Give back a draft that will not be published."""
        self.pool.release(draft.pages[draft.num_shared :])
        self._slots.release(draft.hidden_slot)
        self._drafts -= 1

    def drop(self, user_ids: Iterable[str]) -> None:
        """Forget these users, in lower tiers too; memory that a pin holds is free when the pin goes."""
        for user_id in (name for own in user_ids for name in (own, ahead_of(own))):
            if user_id in self._prefixes:
                self._release(self._take(user_id))
            self.worth.forget(user_id)
            if self.host is not None:
                self.host.discard(user_id)

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

    def _stay(self, user_id: str) -> None:
        """Queue the user with what they are worth now."""
        self._forget_place(user_id)
        if self.host is not None:
            self.host.arrived(user_id)
        self._queue.put(user_id, self._worth_of(self._prefixes[user_id]))

    def _worth_of(self, prefix: UserPrefix) -> float:
        copy = None if self.host is None else self.host.get(prefix.user_id)
        cost = self._restore_cost(prefix.num_tokens, 0 if copy is None else copy.prefix.num_tokens)
        # A next window is as likely to be needed as its user is to be seen.
        return self.worth.of(prefix.user_id.removesuffix(AHEAD), cost / len(prefix.pages))

    def _forget_place(self, user_id: str) -> None:
        """The user is no longer among the next to be turned out."""
        if user_id in self._leaving:
            del self._leaving[user_id]
            self._leaving_pages -= len(self._prefixes[user_id].pages)

    def _take(self, user_id: str) -> UserPrefix:
        """The user's prefix, no longer theirs."""
        self._forget_place(user_id)
        self._queue.remove(user_id)
        self._num_ahead -= user_id.endswith(AHEAD)
        return self._prefixes.pop(user_id)

    def _make_room(self, num_pages: int) -> None:
        """Evict until `num_pages` pages are free; if pinned users are in the way, once more when work under way, which
        holds snapshots' pages and slots, is done."""
        for end_pins in (self.reap, self.settle):
            if self.pool.num_free >= num_pages and self._slots.num_free:
                return
            end_pins()
            self._evict_until(num_pages)

    def _evict_until(self, num_pages: int) -> None:
        """Evict until `num_pages` pages are free or nobody but pinned users is left."""
        for user_id in [*self._leaving] if self.pool.num_free < num_pages else ():
            if self.pool.num_free >= num_pages:
                return
            if user_id not in self._pinned_users:
                self._evict(user_id, self._worth_of(self._prefixes[user_id]))
        spared = []
        while self.pool.num_free < num_pages and (entry := self._queue.pop()) is not None:
            worth, user_id = entry
            if user_id in self._pinned_users:
                spared.append(entry)
            else:
                self._evict(user_id, worth)
        for worth, user_id in spared:
            self._queue.put(user_id, worth)

    def _evict(self, user_id: str, worth: float) -> None:
        self.worth.evicted(worth)
        self._release(self._take(user_id))
        self.num_evicted += 1
        if self.host is not None:
            self.host.left(user_id)

    def check_integrity(self) -> None:
        """Raise `EngineError` unless pages, slots and the eviction queue agree with the prefixes and pins. Call
        between batches, when no draft is open."""
        if self._drafts:
            raise EngineError(f"{self._drafts} drafts were neither published nor abandoned")
        queued = self._queue.users()
        if sorted((*queued, *self._leaving)) != sorted(self._prefixes):
            raise EngineError("a resident user is missing from the eviction queue, or another is in it")
        if self._leaving_pages != sum(len(self._prefixes[user_id].pages) for user_id in self._leaving):
            raise EngineError(f"{self._leaving_pages} pages are counted of those who leave next, and they have others")
        for prefix in self._pins:
            if prefix not in self._lingering and prefix is not self._prefixes.get(prefix.user_id):
                raise EngineError(f"user {prefix.user_id!r}: a prefix is pinned whose pages another one has taken over")
        page_holders = np.zeros(self.pool.num_pages, dtype=np.int32)
        slot_holders: Counter[int] = Counter()
        for prefix in (*self._prefixes.values(), *self._lingering):
            if len(prefix.pages) != self.pool.pages_for(prefix.kv_tokens):
                raise EngineError(f"user {prefix.user_id!r}: {len(prefix.pages)} pages for {prefix.kv_tokens} tokens")
            page_holders[prefix.pages] += 1
            slot_holders[prefix.hidden_slot] += 1
        self.pool.check_integrity(page_holders)
        self._slots.check_integrity(slot_holders)
        if self.host is not None:
            self.host.check_integrity(self._prefixes)


def _decrement(counts: dict[_T, int], key: _T) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
