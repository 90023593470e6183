"""Requests on their way to the device, in the order in which it takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import islice

from xgr_stream.errors import DeadlineExceeded, OverCapacity, XgrError
from xgr_stream.history import HistoryView
from xgr_stream.scheduler.policy import Queued, admit, batching_s, due_at, is_pressed, order_of
from xgr_stream.scheduler.promise import Promise
from xgr_stream.types import RecommendRequest, RecommendResponse

LONG = 0.25
"""Share of a request's time from which on what was foreseen for it is compared with what it took."""


class Work:
    """A request on its way to the device."""

    __slots__ = (
        "arrived",
        "deadline",
        "due",
        "fell_back",
        "foreseen_s",
        "long",
        "partition",
        "prefilled",
        "promise",
        "queued",
        "ready",
        "request",
        "rows",
        "running",
        "view",
        "waits",
    )

    def __init__(
        self, request: RecommendRequest, view: HistoryView | None, deadline: float | None, rows: int, partition: int
    ) -> None:
        self.request = request
        self.view = view
        self.deadline = deadline
        self.rows = rows
        self.partition = partition
        self.arrived = 0.0
        self.due = 0.0
        """When its decode must have ended."""
        self.foreseen_s = 0.0
        """How long that was thought to take when it arrived; 0: so short that it says nothing of longer ones."""
        self.long = False
        """Whether its prefix is so far behind that it may be computed in chunks before."""
        self.prefilled = False
        """Whether it was."""
        self.fell_back = False
        """Whether its user's own version failed, so that it is the primary's."""
        self.queued = Queued(0.0, 0.0, 0.0)
        self.ready = False
        """Whether the device thread has come to it: what was put before it has been done."""
        self.waits = False
        """Whether it is in the queue."""
        self.running = False
        """Whether it can't be withdrawn any more."""
        self.promise = Promise()

    def fail(self, error: XgrError) -> None:
        """Answer with this, unless it was answered or withdrawn."""
        if self.run():
            self.promise.set_result(RecommendResponse.failure(self.request.request_id, self.request.user_id, error))

    def run(self) -> bool:
        """Note that it is being computed; False if it was answered or withdrawn before."""
        self.running = self.running or self.promise.start()
        return self.running and not self.promise.done()

    def expired(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now

    def late(self, now: float) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline passed after {(now - self.arrived) * 1000:.0f} ms in the decode queue")


class WorkQueue:
    """Requests that wait, the nearest deadline first (see `policy`). Safe on any thread: `put` on the loop's, the
    rest on the device's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: list[Work] = []
        self._by_partition: dict[int, list[Work]] = {}
        self._seconds = 0.0
        self._num_ready = 0

    def __len__(self) -> int:
        return len(self._works)

    def put(self, work: Work, *, now: float, seconds: float, free_at: float, batch_s: float, margin: float) -> None:
        """Take in a request that the device needs `seconds` for, once it is free for the first of the queue. A full
        batch takes `batch_s`; 0 while nothing is under way, since the next batch then starts at once. All of it may
        take `margin` times as long.

        Raises `OverCapacity` if it, or one that was taken in before, would not be answered in time.
        """
        work.arrived = now
        work.due = due_at(work.deadline, now)
        left_s = (work.due - now) / margin
        due = now + left_s - batching_s(batch_s, left_s)
        work.queued = Queued(order_of(work.deadline, now), due, seconds)
        with self._lock:
            end = free_at + self._seconds
            place = admit(_Places(self._works), work.queued, free_at, end)
            if place is None:
                wait_ms = (end - now) * 1000
                raise OverCapacity(f"requests that take {wait_ms:.0f} ms wait: this one's deadline could not be met")
            foreseen_s = end + seconds - now + batching_s(batch_s, left_s)
            if place == len(self._works) and foreseen_s > LONG * left_s:
                work.foreseen_s = foreseen_s
            self._insert(work, place)

    def put_back(self, works: Sequence[Work]) -> None:
        """Let these be the first again."""
        with self._lock:
            for work in reversed(works):
                self._insert(work, 0)

    @property
    def num_ready(self) -> int:
        """Of those that wait, how many can be computed."""
        return self._num_ready

    def mark_ready(self, work: Work) -> None:
        """The device thread has come to this one."""
        with self._lock:
            work.ready = True
            self._num_ready += work.waits

    def candidates(self, count: int) -> list[Work]:
        """The first ready requests of each partition, `count` in all or a few more, in the queue's order."""
        with self._lock:
            each = -(-count // max(1, len(self._by_partition)))
            found = [work for works in self._by_partition.values() for work in islice(works, each) if work.ready]
        if len(self._by_partition) > 1:
            found.sort(key=lambda work: work.queued.order)
        return found

    def remove(self, works: Sequence[Work]) -> None:
        with self._lock:
            for work in works:
                self._remove(work)

    def take_gone(self, now: float) -> list[Work]:
        """Take out those whose time is up and those that were withdrawn."""
        with self._lock:
            gone = [
                work for work in self._works if work.expired(now) or (not work.running and work.promise.cancelled())
            ]
            for work in gone:
                self._remove(work)
            return gone

    def take_all(self) -> list[Work]:
        with self._lock:
            works, self._works = self._works, []
            self._by_partition.clear()
            self._seconds = 0.0
            self._num_ready = 0
            for work in works:
                work.waits = False
            return works

    def pressed(self, now: float, free_at: float) -> bool:
        """Whether those that wait leave no time for appends: by the one that comes last."""
        with self._lock:
            if not self._works:
                return False
            return is_pressed(free_at + self._seconds - now, self._works[-1].queued.due - now)

    def _insert(self, work: Work, place: int) -> None:
        self._works.insert(place, work)
        own = self._by_partition.setdefault(work.partition, [])
        # Behind the last one of its partition that is before it in the queue; nearly always that is the end of both.
        if place == len(self._works) - 1:
            own.append(work)
        elif place == 0:
            own.insert(0, work)
        else:
            ahead = {id(other) for other in self._works[:place]}
            own.insert(sum(id(other) in ahead for other in own), work)
        self._seconds += work.queued.seconds
        work.waits = True
        self._num_ready += work.ready

    def _remove(self, work: Work) -> None:
        self._works.remove(work)
        work.waits = False
        self._num_ready -= work.ready
        own = self._by_partition[work.partition]
        own.remove(work)
        if not own:
            del self._by_partition[work.partition]
        self._seconds = self._seconds - work.queued.seconds if self._works else 0.0


class _Places(Sequence[Queued]):
    """The queue as admission sees it, without a copy: it nearly always looks at the last one alone."""

    def __init__(self, works: list[Work]) -> None:
        self._works = works

    def __len__(self) -> int:
        return len(self._works)

    def __getitem__(self, place: int) -> Queued:  # type: ignore[override]
        return self._works[place].queued

    def __iter__(self) -> Iterator[Queued]:
        return (work.queued for work in self._works)
