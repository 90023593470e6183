"""Batches of requests, from the queue to their answers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
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
from xgr_stream.types import CacheState

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
        for work in gone:
            expired = work.expired(now)
            self._metrics.requests_dropped.labels("expired" if expired else "cancelled").inc()
            if expired:
                work.fail(work.late(now))

    def begin(self, works: Sequence[Work]) -> None:
        """Answer those who still want it, as one batch."""
        now = self._clock.now()
        late = [work for work in works if work.expired(now)]
        self.drop(late, now)
        batch = [work for work in works if not work.expired(now) and work.run()]
        self._metrics.requests_dropped.labels("cancelled").inc(len(works) - len(late) - len(batch))
        if not batch:
            return
        engine = self._choice.engine_of(batch[0])
        step = self._choice.step_of(engine, batch)
        self._pace.begins(now, step)
        try:
            pending = engine.begin([(work.request, work.view) for work in batch])
        except Exception as error:  # noqa: BLE001, it becomes the batch's answer
            self._fail(engine, batch, error)
            return
        self._pace.begun(now, self._clock.now())
        self._running.append(_Running(batch, engine, pending, step, now))

    def finish(self) -> None:
        """Wait for the oldest one, and keep its promises."""
        running = self._running.popleft()
        batch, engine = running.works, running.engine
        try:
            responses = running.pending.finish()
            if len(responses) != len(batch):
                raise EngineError(f"the engine gave {len(responses)} responses to {len(batch)} requests")
        except Exception as error:  # noqa: BLE001
            self._fail(engine, batch, error)
            return
        self._pace.ended(running.begun_at, running.step, self._steps())
        now = self._clock.now()
        challenger = self._versions.challenger
        challenged = engine is not self._versions.primary
        shadow = self._shadow if self._versions.shadow is not None else None
        failed = []
        for work, response in zip(batch, responses, strict=True):
            if challenged and response.error in FAILED:
                logger.error("the challenger %s failed on a request: %s", engine.version, response.message)
                failed.append(work)
                continue
            if work.prefilled and response.cache is not CacheState.NONE:
                response = replace(response, cache=CacheState.COLD)
            if work.foreseen_s:
                self._pace.kept(work.foreseen_s, now - work.arrived)
            work.promise.set_result(response)
            if shadow is not None:
                shadow.answered(work.request, work.view, response)
        self._metrics.count_model(
            engine.version, responses, compares=challenger is not None and challenger.role == "canary"
        )
        if failed:
            self._fall_back(failed)

    def _fall_back(self, works: Sequence[Work]) -> None:
        """Have the primary answer what its challenger failed on."""
        for work in works:
            work.fell_back = True
            work.prefilled = False
        self._queue.put_back(works)

    def _steps(self) -> list[Step]:
        return [running.step for running in self._running]

    def _fail(self, engine: DeviceEngine, batch: Sequence[Work], error: Exception) -> None:
        """Answer a batch that failed; one that was too large for the memory is tried again in parts, and a single
        request once it has the memory of what is being prefilled."""
        logger.error("the engine failed on a batch of %d requests", len(batch), exc_info=error)
        what = fault(error)
        self._pace.left(self._steps())
        if what is Fault.MEMORY:
            self._metrics.out_of_memory.inc()
            self._pace.cut(engine.version)
            if len(batch) > 1 or self._prefills.give_way(engine, batch[0]):
                self._queue.put_back(batch)
                return
        if what is not Fault.DEVICE and engine is not self._versions.primary:
            self._metrics.count_model_failure(engine.version, len(batch))
            self._fall_back(batch)
            return
        failure = answer_to(error)
        for work in batch:
            work.fail(failure)
        if what is Fault.DEVICE:
            self._lose(error)

    def refuse_all(self, error: XgrError) -> None:
        """Nothing will come of any of them."""
        while self._running:
            for work in self._running.popleft().works:
                work.fail(error)
