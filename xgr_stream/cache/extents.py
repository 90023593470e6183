"""Which pages of an arena are free, as runs: whoever allocates gets as few of them as there are."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from xgr_stream.errors import EngineError, OutOfMemory

Run = tuple[int, int]
"""Pages `first` to `stop - 1`."""


class Extents:
    """Hands out the pages 0 to size - 1 in runs: one run where one is long enough, else the longest ones. So what is
    free can always be had, however scattered it is."""

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self._name = name
        self._stops: dict[int, int] = {}
        """Of each free run, by where it begins; and the reverse:"""
        self._firsts: dict[int, int] = {}
        self._by_length: list[Run] = []
        """(length, first) of each free run, ascending."""
        self.num_free = size
        self._held = bytearray(size)
        if size:
            self._add(0, size)

    def allocate(self, count: int, *, after: int | None = None) -> list[Run]:
        """`count` free pages; the first of them at `after` if that is free, to go on with a run that ends there.
        Raises `OutOfMemory`, with nothing changed."""
        if count > self.num_free:
            raise OutOfMemory(f"{count} {self._name} asked for, but only {self.num_free} of {self.size} are free")
        runs = []
        if count and after is not None and after in self._stops:
            runs.append(self._take(after, count))
            count -= runs[0][1] - after
        while count:
            place = bisect_left(self._by_length, (count, -1))
            first = self._by_length[min(place, len(self._by_length) - 1)][1]
            runs.append(self._take(first, count))
            count -= runs[-1][1] - first
        return runs

    def release(self, runs: Sequence[Run]) -> None:
        """Give back runs that were allocated, or parts of them."""
        for first, stop in runs:
            before, behind = self._firsts.get(first), self._stops.get(stop)
            if not 0 <= first < stop <= self.size or self._held.count(1, first, stop) < stop - first:
                raise EngineError(f"{self._name} {first} to {stop - 1} are free, but were held")
            self._held[first:stop] = bytes(stop - first)
            self.num_free += stop - first
            if before is not None:
                self._remove(before, first)
                first = before
            if behind is not None:
                self._remove(stop, behind)
                stop = behind
            self._add(first, stop)

    def _take(self, first: int, most: int) -> Run:
        """The beginning of a free run, `most` pages of it at most."""
        stop = self._stops[first]
        self._remove(first, stop)
        taken = min(stop, first + most)
        if taken < stop:
            self._add(taken, stop)
        self._held[first:taken] = b"\1" * (taken - first)
        self.num_free -= taken - first
        return first, taken

    def _add(self, first: int, stop: int) -> None:
        self._stops[first], self._firsts[stop] = stop, first
        insort(self._by_length, (stop - first, first))

    def _remove(self, first: int, stop: int) -> None:
        del self._stops[first], self._firsts[stop]
        del self._by_length[bisect_left(self._by_length, (stop - first, first))]

    def check_integrity(self, held: Sequence[Run]) -> None:
        """Raise `EngineError` unless the free runs and those held are all pages, each once."""
        runs = sorted([*self._stops.items(), *held])
        end = 0
        for first, stop in runs:
            if first != end:
                raise EngineError(f"{self._name} {min(first, end)} to {max(first, end) - 1} are held twice or lost")
            end = stop
        if end != self.size:
            raise EngineError(f"{self._name} {end} to {self.size - 1} are lost")
        if sorted((stop - first, first) for first, stop in self._stops.items()) != self._by_length:
            raise EngineError(f"the free runs of {self._name} are not those by length")
        if any(self._held.count(1, first, stop) for first, stop in self._stops.items()):
            raise EngineError(f"{self._name} are held and free at once")
        if sum(length for length, _ in self._by_length) != self.num_free:
            raise EngineError(f"{self.num_free} free {self._name} are counted, and there are others")


def num_pages(runs: Sequence[Run]) -> int:
    return sum(stop - first for first, stop in runs)


def behind(runs: Sequence[Run], skipped: int) -> list[Run]:
    """The runs without their first `skipped` pages."""
    rest = []
    for first, stop in runs:
        left_out = min(skipped, stop - first)
        skipped -= left_out
        if first + left_out < stop:
            rest.append((first + left_out, stop))
    return rest


def joined(runs: Sequence[Run], more: Sequence[Run]) -> list[Run]:
    """Both, in order, with those made one that lie side by side."""
    if runs and more and runs[-1][1] == more[0][0]:
        return [*runs[:-1], (runs[-1][0], more[0][1]), *more[1:]]
    return [*runs, *more]
