"""What a user's prefix is worth, and users in the order of it."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

REMEMBERED = 1 << 17
"""Users whose rate is remembered, at most: about 150 bytes each."""


class Worth(Protocol):
    """Who goes first: the one whose worth is least. A worth holds until the user is seen again."""

    def seen(self, user_id: str) -> None:
        """The user did something or asked."""
        ...

    def of(self, user_id: str, cost_per_page: float) -> float:
        """What a page of theirs is worth now, if it would cost so much (above 0, any unit) to have it again."""
        ...

    def evicted(self, worth: float) -> None:
        """One of this worth was turned out."""
        ...

    def forget(self, user_id: str) -> None:
        """Nothing of the user is to be remembered."""
        ...


class DecayedRate:
    """Cost to restore × chance of being needed, which is the user's rate: how often they were seen, each time counting
    half as much after `half_life` times that anybody was seen.

    Kept as a logarithm: all rates decay alike, so their order does not change, and a worth needs no update while the
    user is not seen. No clock is needed, and equal histories of calls give equal worths.
    """

    def __init__(self, half_life: int, remembered: int = REMEMBERED) -> None:
        self._step = 1.0 / half_life
        self._now = 0.0
        self._remembered = remembered
        self._rates: OrderedDict[str, float] = OrderedDict()
        """log2 of the sum of 2^(when seen), the latest seen last."""
        self._last_dropped: float | None = None
        """Of whoever was the last to be remembered no more; None: nobody was."""

    def seen(self, user_id: str) -> None:
        self._now += self._step
        rate = self._rates.get(user_id)
        if rate is None:
            self._rates[user_id] = self._now
            if len(self._rates) > self._remembered:
                _, self._last_dropped = self._rates.popitem(last=False)
            return
        self._rates[user_id] = self._now + math.log2(1.0 + 2.0 ** (rate - self._now))
        self._rates.move_to_end(user_id)

    def of(self, user_id: str, cost_per_page: float) -> float:
        rate = self._rates.get(user_id)
        if rate is None:
            # Like the last of those who are remembered no more, and never more than one seen now.
            rate = self._now if self._last_dropped is None else min(self._last_dropped, self._now)
        return rate + math.log2(cost_per_page)

    def evicted(self, worth: float) -> None:
        """What others are worth is not changed by it."""

    def forget(self, user_id: str) -> None:
        self._rates.pop(user_id, None)


class GreedyDual:
    """Cost to restore + the worth at which the last user was turned out when this one was last seen: the costly stay
    longer, nobody for ever. What the cache had before it knew rates, and what `bench tiers` compares with."""

    def __init__(self) -> None:
        self._level = 0.0

    def seen(self, user_id: str) -> None:
        """Counts by itself."""

    def of(self, user_id: str, cost_per_page: float) -> float:
        return self._level + cost_per_page

    def evicted(self, worth: float) -> None:
        self._level = max(self._level, worth)

    def forget(self, user_id: str) -> None:
        """It knows nobody."""


class LeastRecentlyUsed:
    """When the user was last seen, whatever they cost: what `bench tiers` compares with."""

    def __init__(self) -> None:
        self._now = 0
        self._seen: dict[str, int] = {}

    def seen(self, user_id: str) -> None:
        self._now += 1
        self._seen[user_id] = self._now

    def of(self, user_id: str, cost_per_page: float) -> float:
        return float(self._seen.get(user_id, self._now))

    def evicted(self, worth: float) -> None:
        """Nothing depends on it."""

    def forget(self, user_id: str) -> None:
        self._seen.pop(user_id, None)


class WorthQueue:
    """Users by worth, the least first, in O(log n) a call."""

    def __init__(self) -> None:
        self._worths: dict[str, float] = {}
        # Entries that are not what `_worths` says are outdated: a user was put again, or removed.
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._worths)

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._worths

    def put(self, user_id: str, worth: float) -> None:
        """Queue the user with this worth, whatever they had before."""
        if self._worths.get(user_id) == worth:
            return
        self._worths[user_id] = worth
        heapq.heappush(self._heap, (worth, user_id))
        if len(self._heap) > 2 * len(self._worths) + 64:
            self._heap = [(worth, user_id) for user_id, worth in self._worths.items()]
            heapq.heapify(self._heap)

    def remove(self, user_id: str) -> None:
        """Take the user out, if they are in."""
        self._worths.pop(user_id, None)

    def least(self) -> tuple[float, str] | None:
        """The least worth and whose it is; None if nobody is queued."""
        heap = self._heap
        while heap:
            worth, user_id = heap[0]
            if self._worths.get(user_id) == worth:
                return heap[0]
            heapq.heappop(heap)
        return None

    def pop(self) -> tuple[float, str] | None:
        """`least`, taken out."""
        found = self.least()
        if found is not None:
            heapq.heappop(self._heap)
            del self._worths[found[1]]
        return found

    def least_for(self, wanted: int, size_of: Callable[[str], int], *, below: float) -> list[str] | None:
        """The least worthy users, of less worth than `below`, whose sizes make up `wanted`; None if all of them don't.
        They stay queued. Users of size 0 are passed over."""
        seen: dict[str, float] = {}
        found = []
        while wanted > 0 and (least := self.least()) is not None and least[0] < below:
            heapq.heappop(self._heap)
            worth, user_id = least
            if user_id in seen:  # removed and put again, as worthy as before
                continue
            seen[user_id] = worth
            if size := size_of(user_id):
                found.append(user_id)
                wanted -= size
        for user_id, worth in seen.items():
            heapq.heappush(self._heap, (worth, user_id))
        return None if wanted > 0 else found

    def users(self) -> list[str]:
        return list(self._worths)
