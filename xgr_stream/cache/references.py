"""Reference-counted places: which of `size` numbered places are in use, and by how many holders."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xgr_stream.errors import EngineError, OutOfMemory

IntArray = NDArray[np.int32]


class ReferenceCounts:
    """Hands out the numbers 0 to size - 1. A place is free again when its last holder has released it.

    Arrays of places must not name a place twice. All calls are O(places named).
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._holders = np.zeros(size, dtype=np.int32)
        # A stack: the place released last is handed out first, while it may still be in the processor's cache.
        self._free = np.arange(size - 1, -1, -1, dtype=np.int32)
        self._num_free = size

    @property
    def size(self) -> int:
        return len(self._holders)

    @property
    def num_free(self) -> int:
        return self._num_free

    def allocate(self, count: int) -> IntArray:
        """`count` free places, each with one holder: the caller. [count] Raises `OutOfMemory`, with nothing changed."""
        if count > self._num_free:
            raise OutOfMemory(f"{count} {self._name} asked for, but only {self._num_free} of {self.size} are free")
        places = self._free[self._num_free - count : self._num_free].copy()
        self._num_free -= count
        self._holders[places] = 1
        return places

    def retain(self, places: IntArray) -> None:
        """One more holder for each of `places`, which must be in use."""
        holders = self._held(places)
        holders += 1
        self._holders[places] = holders

    def release(self, places: IntArray) -> None:
        """One holder less for each of `places`; those that have none left are free."""
        holders = self._held(places)
        holders -= 1
        self._holders[places] = holders
        num_freed = len(holders) - np.count_nonzero(holders)
        if num_freed:
            self._free[self._num_free : self._num_free + num_freed] = places[holders == 0]
            self._num_free += num_freed

    def _held(self, places: IntArray) -> IntArray:
        """How many holders each has, a copy. Raises `EngineError` if one has none. [count]"""
        # `take` and `count_nonzero`: indexing and `all` take three times as long.
        holders = self._holders.take(places)
        if np.count_nonzero(holders) != len(holders):
            raise EngineError(f"{self._name} {places[holders == 0].tolist()} are free, but were held")
        return holders

    def check_integrity(self, expected: NDArray[np.int32] | None = None) -> None:
        """Raise `EngineError` unless every place is either free or held (by `expected` holders, if given). [size]"""
        free = np.zeros(self.size, dtype=bool)
        free[self._free[: self._num_free]] = True
        if int(free.sum()) != self._num_free:
            raise EngineError(f"the free list of {self._name} names a place twice")
        if ((self._holders == 0) != free).any() or (self._holders < 0).any():
            raise EngineError(f"{self._name} are held and free at once, or neither")
        if expected is not None and (self._holders != expected).any():
            wrong = np.flatnonzero(self._holders != expected)[:8]
            raise EngineError(
                f"{self._name} {wrong.tolist()} have {self._holders[wrong].tolist()} holders "
                f"where {expected[wrong].tolist()} are known"
            )


class SlotCounts:
    """`ReferenceCounts` of places that are asked for one at a time, in a third of the time that arrays of one take."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self.size = size
        self._holders: dict[int, int] = {}
        """Of the places in use."""
        self._released: list[int] = []
        self._first_unused = 0
        """It and those behind it were never in use."""

    @property
    def num_free(self) -> int:
        return self.size - len(self._holders)

    def allocate(self) -> int:
        """A free place with one holder: the caller. Raises `OutOfMemory`, with nothing changed."""
        if self._released:
            place = self._released.pop()
        elif self._first_unused < self.size:
            place = self._first_unused
            self._first_unused += 1
        else:
            raise OutOfMemory(f"all {self.size} {self._name} are in use")
        self._holders[place] = 1
        return place

    def retain(self, place: int) -> None:
        """One more holder of a place in use."""
        self._holders[place] = self._held(place) + 1

    def release(self, place: int) -> None:
        """One holder less; if that was the last one, the place is free."""
        left = self._held(place) - 1
        if left:
            self._holders[place] = left
        else:
            del self._holders[place]
            self._released.append(place)

    def _held(self, place: int) -> int:
        holders = self._holders.get(place)
        if holders is None:
            raise EngineError(f"{self._name} {place} is free, but was held")
        return holders

    def check_integrity(self, expected: Mapping[int, int]) -> None:
        """Raise `EngineError` unless every place is either free or held by `expected` holders."""
        if sorted((*self._holders, *self._released)) != list(range(self._first_unused)):
            raise EngineError(f"{self._name} are held and free at once, or neither")
        if self._holders != expected:
            raise EngineError(f"{self._name} have holders {self._holders} where {expected} are known")
