"""Batches of requests, from the queue to their answers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from xgr_stream.errors import EngineError, OutOfMemory, XgrError
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.choosing import Choice
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.faults import Fault, answer_to, fault
from xgr_stream.scheduler.pace import Pace, Step
from xgr_stream.scheduler.ports import DeviceEngine, PendingAnswers
from xgr_stream.scheduler.prefill import Prefills
from xgr_stream.scheduler.shadow import Shadow
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.work import Work, WorkQueue
from xgr_stream.types import CacheState, RecommendResponse

logger = logging.getLogger(__name__)

FAILED = (EngineError.code, OutOfMemory.code)
"""Error codes of a response for which the engine is to blame, not the request."""


class _Running(NamedTuple):
    """A batch that the device works on."""

    works: list[Work]
    engine: DeviceEngine
    pending: PendingAnswers
    step: Step
    begun_at: float


class Decoding:
    """Those that the device works on, the oldest first. Used by the device thread.

    What fails on a challenger goes back into the queue for the primary."""

    def __init__(
        self,
        versions: Versions[Any],
        queue: WorkQueue,
        choice: Choice,
        prefills: Prefills,
        shadow: Shadow,
        pace: Pace,
        clock: Clock,
        metrics: Metrics,
        *,
        lose: Callable[[Exception], None],
    ) -> None:
        """`lose`: called with what says that the device is lost."""
        self._versions = versions
        self._queue = queue
        self._choice = choice
        self._prefills = prefills
        self._shadow = shadow
        self._pace = pace
        self._clock = clock
        self._metrics = metrics
        self._lose = lose
        self._running: deque[_Running] = deque()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def oldest_done(self) -> bool:
        """Whether the device is done with the oldest one, of which there must be one."""
        return self._running[0].pending.done()

    @property
    def newest_s(self) -> float:
        """What the newest one takes, in seconds; there must be one."""
        return self._pace.decode_s(self._running[-1].step)

    def drop(self, gone: Sequence[Work], now: float) -> None:
        """Answer requests that left the queue before their decode."""
        expired = [work for work in gone if work.expired(now)]
        for work in expired:
            work.fail(work.late(now))
        with _harmless():
            self._metrics.requests_dropped.labels("expired").inc(len(expired))
            self._metrics.requests_dropped.labels("cancelled").inc(len(gone) - len(expired))

    def begin(self, works: Sequence[Work]) -> None:
        """Answer those who still want it, as one batch."""
        batch, engine = list(works), self._versions.primary
        try:
            now = self._clock.now()
            gone = [work for work in works if work.expired(now) or not work.run()]
            if gone:
                self.drop(gone, now)
                batch = [work for work in works if work not in gone]
            if not batch:
                return
            engine = self._choice.engine_of(batch[0])
            step = self._choice.step_of(engine, batch)
            self._pace.begins(now, step)
            pending = engine.begin([(work.request, work.view) for work in batch])
        except Exception as error:  # noqa: BLE001, it becomes the batch's answer
            self._fail(engine, batch, error)
            return
        self._running.append(_Running(batch, engine, pending, step, now))
        with _harmless():
            self._pace.begun(now, self._clock.now())

    def finish(self) -> None:
        """Wait for the oldest one, and keep its promises. What is learned from it fails alone."""
        running = self._running.popleft()
        batch, engine = running.works, running.engine
        try:
            responses = running.pending.finish()
            if len(responses) != len(batch):
                raise EngineError(f"the engine gave {len(responses)} responses to {len(batch)} requests")
            now = self._clock.now()
        except Exception as error:  # noqa: BLE001
            self._fail(engine, batch, error)
            return
        with _harmless():  # before the answers, since what their callbacks take is not the device's
            self._pace.ended(running.begun_at, running.step, self._steps())
        self._answer(engine, batch, responses)
        with _harmless():
            self._learn(engine, batch, responses, now)

    def _answer(self, engine: DeviceEngine, batch: Sequence[Work], responses: Sequence[RecommendResponse]) -> None:
        """Keep the promises of a batch, but for those that its challenger failed on."""
        challenged = engine is not self._versions.primary
        failed = []
        for work, response in zip(batch, responses, strict=True):
            try:
                if challenged and response.error in FAILED:
                    logger.error("the challenger %s failed on a request: %s", engine.version, response.message)
                    failed.append(work)
                    continue
                if work.prefilled and response.cache is not CacheState.NONE:
                    response = replace(response, cache=CacheState.COLD)
                work.promise.set_result(response)
            except Exception as error:
                logger.exception("a request could not be given its answer")
                work.fail(answer_to(error))
        if failed:
            self._fall_back(failed)

    def _learn(
        self, engine: DeviceEngine, batch: Sequence[Work], responses: Sequence[RecommendResponse], now: float
    ) -> None:
        """See what a batch that ended at `now` says of the versions, and of what was foreseen."""
        challenger = self._versions.challenger
        self._metrics.count_model(
            engine.version, responses, compares=challenger is not None and challenger.role == "canary"
        )
        shadow = self._shadow if self._versions.shadow is not None else None
        for work, response in zip(batch, responses, strict=True):
            if not work.promise.done():  # it waits for the primary
                continue
            if work.foreseen_s:
                self._pace.kept(work.foreseen_s, now - work.arrived)
            if shadow is not None:
                shadow.answered(work.request, work.view, response)

    def _fall_back(self, works: Sequence[Work]) -> None:
        """Have the primary answer what its challenger failed on."""
        for work in works:
            work.fell_back = True
            work.prefilled = False
        self._queue.put_back(works)

    def _steps(self) -> list[Step]:
        return [running.step for running in self._running]

    def _fail(self, engine: DeviceEngine, batch: Sequence[Work], error: Exception) -> None:
        """Answer a batch that failed, unless it is tried again."""
        logger.error("the engine failed on a batch of %d requests", len(batch), exc_info=error)
        batch = [work for work in batch if not work.promise.done()]
        try:
            self._pace.left(self._steps())
            if self._tried_again(engine, batch, error):
                return
        except Exception as second:
            logger.exception("a batch that failed could not be tried again")
            if fault(second) is Fault.DEVICE:
                error = second
        failure = answer_to(error)
        for work in batch:
            if not work.waits:
                work.fail(failure)
        if fault(error) is Fault.DEVICE:
            self._lose(error)

    def _tried_again(self, engine: DeviceEngine, batch: Sequence[Work], error: Exception) -> bool:
        """Whether a batch that failed went back into the queue: one that was too large for the memory, to be tried in
        parts, and a single request once it has the memory of what is being prefilled; what a challenger failed on."""
        what = fault(error)
        if what is Fault.MEMORY:
            self._metrics.out_of_memory.inc()
            self._pace.cut(engine.version, len(batch))
            if len(batch) > 1 or (batch and self._prefills.give_way(engine, batch[0])):
                self._queue.put_back(batch)
                return True
        if what is not Fault.DEVICE and engine is not self._versions.primary:
            self._metrics.count_model_failure(engine.version, len(batch))
            self._fall_back(batch)
            return True
        return False

    def refuse_all(self, error: XgrError) -> None:
        """Nothing will come of any of them."""
        while self._running:
            for work in self._running.popleft().works:
                work.fail(error)


@contextmanager
def _harmless() -> Iterator[None]:
    """What fails in here is nobody's answer."""
    try:
        yield
    except Exception:
        logger.exception("a batch could not be accounted for")
