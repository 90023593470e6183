"""Queues of device work, and when work on them is done. On the CPU work is done when its call returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch


class Mark:
    """A point in a lane's work."""

    __slots__ = ("_event", "_made_at")

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self._event = event
        self._made_at = perf_counter()

    def ms_since(self, earlier: Mark) -> float:
        """Milliseconds of the lane's work between two of its marks, both done."""
        if self._event is None or earlier._event is None:
            return (self._made_at - earlier._made_at) * 1e3
        return earlier._event.elapsed_time(self._event)

    def done(self) -> bool:
        """Whether all work before the mark is done."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Block this thread until it is."""
        if self._event is not None:
            self._event.synchronize()


@dataclass(frozen=True, slots=True)
class _InFlight:
    mark: Mark
    event: torch.cuda.Event | None
    users: frozenset[str]
    release: Callable[[], None]


class Lane:
    """One CUDA stream: its work is done in order, and beside that of other lanes.

    What a piece of work reads or writes stays pinned until the piece is done: `keep` hands over the pins, `reap` lets
    go of those whose work is done. Users whose memory is touched on one lane are waited for by the other (`follow`).
    """

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self._stream = torch.cuda.Stream(device, priority=priority) if device.type == "cuda" else None
        self._in_flight: deque[_InFlight] = deque()

    @property
    def stream(self) -> torch.cuda.Stream | None:
        return self._stream

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within, work goes to this lane."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Mark:
        return Mark(self._record())

    def keep(self, users: Iterable[str], release: Callable[[], None]) -> Mark:
        """Call `release` once all work so far, which is these users', is done and reaped."""
        event = self._record()
        mark = Mark(event)
        self._in_flight.append(_InFlight(mark, event, frozenset(users), release))
        return mark

    def follow(self, other: Lane, users: Iterable[str]) -> None:
        """Further work here waits, on the device, for what the other lane does for these users."""
        if other is self or self._stream is None:
            return
        wanted = set(users)
        for entry in reversed(other._in_flight):  # the latest one includes those before it
            if entry.event is not None and not wanted.isdisjoint(entry.users):
                self._stream.wait_event(entry.event)
                return

    def reap(self, leave: int | None = None) -> None:
        """Release what finished work held. With `leave`: wait until at most so many pieces of work are under way."""
        while self._in_flight:
            entry = self._in_flight[0]
            if not entry.mark.done():
                if leave is None or len(self._in_flight) <= leave:
                    return
                entry.mark.wait()
            self._in_flight.popleft()
            entry.release()

    def _record(self) -> torch.cuda.Event | None:
        if self._stream is None:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event
