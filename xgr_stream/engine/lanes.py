"""Queues of device work, and when work on them is done. On the CPU work is done when its call returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch


class Mark:
    """A point in a lane's work."""

    __slots__ = ("_done", "_spare", "event", "made_at")

    def __init__(self, event: torch.cuda.Event | None, spare: list[torch.cuda.Event]) -> None:
        """`spare`: where the event goes once nobody has the mark any more, whatever thread that is on."""
        self.event = event
        self._spare = spare
        self._done = event is None
        self.made_at = perf_counter()
        """When the host made it."""

    def __del__(self) -> None:
        if self.event is not None:
            self._spare.append(self.event)

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Let further work of a stream wait, on the device, for the work before the mark."""
        if self.event is not None:
            stream.wait_event(self.event)

    def ms_since(self, earlier: Mark) -> float:
        """Milliseconds of the lane's work between two of its marks, both done."""
        if earlier is self:
            return 0.0
        if self.event is None or earlier.event is None:
            return (self.made_at - earlier.made_at) * 1e3
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds

    def done(self) -> bool:
        """Whether all work before the mark is done."""
        self._done = self._done or self.event is None or self.event.query()
        return self._done

    def wait(self) -> None:
        """Block this thread until it is."""
        if self.event is not None and not self._done:
            self.event.synchronize()
        self._done = True


@dataclass(frozen=True, slots=True)
class _InFlight:
    mark: Mark
    users: frozenset[str]
    release: Callable[[], None]


class Gates:
    """Where a captured graph waits, layer by layer, for prefixes on their way to the device: events that its nodes wait
    for, recorded anew before each replay."""

    def __init__(self, device: torch.device, layers: int) -> None:
        self.events = [torch.cuda.Event(external=True) for _ in range(layers)]
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._passed: Mark | None = None

    def open_with(self, layers: Sequence[Sequence[Mark]]) -> None:
        """Each opens, on the device, when this layer of each of these is there. Not before `are_passed`."""
        for layer, event in enumerate(self.events):
            for own in layers:
                own[layer].hold(self._stream)
            event.record(self._stream)

    def close_behind(self, mark: Mark) -> None:
        """The graph that waits at them is done with this mark."""
        self._passed = mark

    @property
    def are_passed(self) -> bool:
        """Whether no graph waits at them any more."""
        return self._passed is None or self._passed.done()


class Lane:
    """One CUDA stream: its work is done in order, and beside that of other lanes.

    What a piece of work reads or writes stays pinned until the piece is done: `keep` hands over the pins, `reap` lets
    go of those whose work is done. Users whose memory is touched on one lane are waited for by the other (`follow`).
    """

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self._stream = torch.cuda.Stream(device, priority=priority) if device.type == "cuda" else None
        self._context = None if self._stream is None else torch.cuda.stream(self._stream)
        self._entered = 0
        self._spare: list[torch.cuda.Event] = []
        self._in_flight: deque[_InFlight] = deque()
        self._expected: list[Sequence[Mark]] = []
        self._gates: dict[int, torch.cuda.Event] = {}

    @property
    def stream(self) -> torch.cuda.Stream | None:
        return self._stream

    def current(self) -> Lane:
        """Within, as a context manager, work goes to this lane. To be used by one thread; entering it again is free of
        charge, and another lane must not be entered in between."""
        return self

    def __enter__(self) -> None:
        if self._context is not None and not self._entered:
            self._context.__enter__()
        self._entered += 1

    def __exit__(self, *error: object) -> None:
        self._entered -= 1
        if self._context is not None and not self._entered:
            self._context.__exit__(None, None, None)

    def mark(self) -> Mark:
        """The work so far."""
        if self._stream is None:
            return Mark(None, self._spare)
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return Mark(event, self._spare)

    def keep(self, mark: Mark, users: Iterable[str], release: Callable[[], None]) -> None:
        """Call `release` once the work before the mark, which is these users', is done and reaped."""
        if self._stream is None:
            release()
            return
        self._in_flight.append(_InFlight(mark, frozenset(users), release))

    def follow(self, other: Lane, users: Iterable[str] | None = None) -> None:
        """Further work here waits, on the device, for what the other lane does for these users, or for all."""
        if other is self or self._stream is None:
            return
        if not other._in_flight:
            return
        wanted = None if users is None else set(users)
        for entry in reversed(other._in_flight):  # the latest one includes those before it
            if wanted is None or not wanted.isdisjoint(entry.users):
                entry.mark.hold(self._stream)
                return

    def expect(self, layers: Iterable[Sequence[Mark]]) -> None:
        """Further work here reads prefixes that are on their way: when each layer of each is there."""
        if self._stream is not None:
            self._expected += layers

    def await_layer(self, layer: int) -> None:
        """Further work here waits, on the device, for this layer of what is expected, and those before it."""
        if self._stream is None:
            return
        if layer in self._gates:
            self._stream.wait_event(self._gates.pop(layer))
        if not self._expected:
            return
        for layers in self._expected:
            layers[layer].hold(self._stream)
        self._expected = [layers for layers in self._expected if layer < len(layers) - 1]

    def await_layers(self) -> None:
        """Further work here waits, on the device, for all of what is expected: also a captured graph without gates,
        which can't wait for marks made after it."""
        if self._stream is None or not self._expected:
            return
        for layers in self._expected:
            layers[-1].hold(self._stream)
        self._expected = []

    @property
    def expects(self) -> bool:
        """Whether anything that `expect` was told of is still to be waited for."""
        return bool(self._expected)

    def take_expected(self) -> list[Sequence[Mark]]:
        """What is expected, which nothing here waits for from now on."""
        expected, self._expected = self._expected, []
        return expected

    @contextmanager
    def through(self, gates: Gates) -> Iterator[None]:
        """Work captured within waits at these gates, once for each layer."""
        self._gates = dict(enumerate(gates.events))
        try:
            yield
        finally:
            self._gates = {}

    @property
    def num_in_flight(self) -> int:
        """Pieces of work that are not reaped."""
        return len(self._in_flight)

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
