"""How work comes to the device thread: from any thread, in order, and refused at once where there is no time for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from xgr_stream.errors import OverCapacity, XgrError
from xgr_stream.history import HistoryView
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.faults import Fault, answer_to, fault
from xgr_stream.scheduler.pace import Pace, Step
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.work import Work, WorkQueue

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = Work | list[HistoryView] | Callable[[], None]
"""What is handed to the device thread: a request, users to append to, something to call."""


class Intake:
    """The device thread's inbox. Nothing comes into it once it is closed."""

    def __init__(self, versions: Versions[Any], queue: WorkQueue, pace: Pace, clock: Clock) -> None:
        self.inbox: SimpleQueue[Sequence[Item] | None] = SimpleQueue()
        """What was handed over, in its order; None: nothing more will be."""
        self.overloaded = False
        """Whether a request was refused since the device thread last looked."""
        self.closed_with: XgrError | None = None
        """What everything that still comes is answered with."""
        self._versions = versions
        self._queue = queue
        self._pace = pace
        self._clock = clock
        self._lock = threading.Lock()
        self._together: list[Item] | None = None

    def close(self, error: XgrError, *, end: bool = False) -> bool:
        """Refuse with `error` what still comes; `end`: put the end mark. False if it was closed with such an error
        before. The lock makes sure that nothing comes behind the end mark."""
        with self._lock:
            again = type(self.closed_with) is type(error)
            if self.closed_with is None or not end:
                self.closed_with = error
            if end:
                self.inbox.put(None)
            return not again

    def submit(self, work: Work) -> None:
        """Queue a request, or answer it at once."""
        try:
            engine = self._versions.of(work.request.user_id)
            tokens = 0 if work.view is None else engine.pending_tokens(work.view)
            step = Step(engine.version, work.rows, tokens)
            with self._lock:
                if self.closed_with is not None:
                    raise self.closed_with
                self._admit(work, step)
                self._hand_over(work)
        except XgrError as error:
            work.fail(error)
        except Exception as error:
            logger.exception("the engine could not say what a request needs")
            work.fail(answer_to(error))

    def put(self, item: list[HistoryView] | Callable[[], None]) -> XgrError | None:
        """Hand this over; what it was closed with if it is."""
        with self._lock:
            if self.closed_with is None:
                self._hand_over(item)
            return self.closed_with

    def call(self, action: Callable[[], T]) -> Future[T]:
        """Have the device thread run `action`, and what it returns. That the device is lost is the thread's to know,
        too."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action())
            except BaseException as error:  # a SystemExit, too, is the caller's
                future.set_exception(error)
                if fault(error) is Fault.DEVICE:
                    raise
                logger.exception("a call on the device thread failed")

        closed_with = self.put(run)
        if closed_with is not None:
            future.set_exception(closed_with)
        return future

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hand over at the end, at once, what comes inside."""
        with self._lock:
            self._together = []
        try:
            yield
        finally:
            with self._lock:
                items, self._together = self._together, None
                if items:
                    self.inbox.put(items)

    def _hand_over(self, item: Item) -> None:
        if self._together is None:
            self.inbox.put((item,))
        else:
            self._together.append(item)

    def _admit(self, work: Work, step: Step) -> None:
        """Queue a request, or raise `OverCapacity`."""
        now, pace = self._clock.now(), self._pace
        idle = not len(self._queue) and pace.idle
        seconds, batch_s = pace.share_s(step), 0.0 if idle else pace.batch_s(step.version)
        free_at = pace.starts_at(now, step.version)
        try:
            self._queue.put(work, now=now, seconds=seconds, free_at=free_at, batch_s=batch_s, margin=pace.margin)
        except OverCapacity:
            self.overloaded = True
            # What is known of step times may be wrong, and would never be put right if nothing ran.
            if not (idle and pace.may_probe(now)):
                raise
            self._queue.put(work, now=now, seconds=0.0, free_at=float("-inf"), batch_s=0.0, margin=1.0)
