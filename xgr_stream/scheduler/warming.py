"""What the device is given that nobody has been answered for yet: appends, and chunks of prefills."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.appends import AppendQueue
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.faults import Fault, fault
from xgr_stream.scheduler.pace import Pace, Step
from xgr_stream.scheduler.ports import DeviceEngine, WarmReport
from xgr_stream.scheduler.prefill import Prefills
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.work import Work

logger = logging.getLogger(__name__)


class _Running(NamedTuple):
    """Appends that the device works on, as far as it is known."""

    step: Step
    report: WarmReport
    alone: bool
    """Whether requests wait until it is done."""
    takes_s: float
    """That the device was thought to take."""
    batches: int
    """Of requests, that the device had been given before. It waits for those."""


class Warming:
    """Gives it to the device, a batch of it at a time, and learns what it takes. Used by the device thread."""

    def __init__(
        self,
        versions: Versions[Any],
        appends: AppendQueue,
        prefills: Prefills,
        pace: Pace,
        clock: Clock,
        metrics: Metrics,
        *,
        lose: Callable[[Exception], None],
    ) -> None:
        """`lose`: called with what says that the device is lost."""
        self._versions = versions
        self._appends = appends
        self._prefills = prefills
        self._pace = pace
        self._clock = clock
        self._metrics = metrics
        self._lose = lose
        self._running: deque[_Running] = deque()

    @property
    def under_way(self) -> bool:
        """Whether the device is still at it, as far as it is known (`learn`)."""
        return bool(self._running)

    @property
    def may_append(self) -> bool:
        """Whether users may be appended to: nothing is under way, or one batch that ends while the next is prepared, so
        that the device does not wait for it, and a request that comes not for more than one of them."""
        under_way = len(self._running)
        return not under_way or (under_way == 1 and self._pace.appends_end(self._clock.now()))

    @property
    def alone(self) -> bool:
        """Whether no batch of requests is to be started beside what is under way: a prefill that is overdue, which on a
        device with priorities would get what requests leave of it, on a busy one nothing; or appends of which it is to
        be seen what they take."""
        return bool(self._running) and self._running[-1].alone

    def want(self, views: Sequence[HistoryView]) -> None:
        """These users have had events: bring them up to date when there is time."""
        self._expect(views)
        versions, now = self._versions, self._clock.now()
        shed = sum(self._appends.put(view, versions.of(view.user_id).is_resident(view.user_id), now) for view in views)
        self._metrics.appends_shed.inc(shed)

    def append(self, views: Sequence[HistoryView]) -> None:
        """Bring these up to date now; they are of one version."""
        engine: DeviceEngine = self._versions.of(views[0].user_id)
        users = [view.user_id for view in views]
        try:
            long = self._prefills.is_long(engine, views)
            self._appends.remove(users)
            if long:
                self._prefills.begin(engine, views[0])
                return
        except Exception as error:  # noqa: BLE001, `_shed` logs it
            self._appends.remove(users)
            self._shed(engine, views, error)
            return
        self._warm(engine, views)

    def prefill(self, work: Work | None, beside_s: float) -> None:
        """Start the next chunks of what is under way, or else for this request; the batch before takes `beside_s`."""
        alone = self._prefills.overdue(work)
        left_s = inf if alone else self._prefills.chunks_s(work, beside_s)
        while (engine := self._prefills.take(work)) is not None:
            ahead = self._prefills.ahead
            try:
                report = self._prefills.step()
            except Exception as error:
                logger.exception("the engine failed to prefill a user in chunks; their request will")
                self._failed(engine.version, error)
                return
            if report is None:
                if ahead is not None:  # as of somebody with a copy in host memory: brought back, not computed
                    self._warm(engine, [ahead])
                return
            self._begun(engine.version, report, self._clock.now(), alone=alone)
            chunk_s = self._prefills.chunk_s(engine.version)
            left_s -= chunk_s
            if report.users or not chunk_s or left_s < chunk_s:
                return

    def learn(self) -> None:
        """Take note of how long appends took, once they are done."""
        while self._running:
            running = self._running.popleft()  # not asked again if asking fails
            seconds = running.report.seconds
            if seconds is None:
                self._running.appendleft(running)
                return
            left_s = sum([later.takes_s for later in self._running])
            beside = running.batches != self._pace.batches
            self._pace.appended(running.step, running.report.prepared_s + seconds, left_s, beside=beside)

    def abandon(self) -> None:
        """Give up all of it with the device, which can't be asked any more."""
        self._appends.clear()
        self._running.clear()
        self._prefills.abandon()

    def _warm(self, engine: DeviceEngine, views: Sequence[HistoryView]) -> None:
        began_at = self._clock.now()
        try:
            report = engine.warm(views)
        except Exception as error:  # noqa: BLE001, `_shed` logs it
            self._shed(engine, views, error)
            return
        alone = self._pace.needs_sample(engine.version)
        self._begun(engine.version, report, began_at + report.prepared_s, ahead=True, alone=alone)

    def _shed(self, engine: DeviceEngine, views: Sequence[HistoryView], error: Exception) -> None:
        """The engine failed on appends."""
        logger.error("the engine failed to warm %d users; their next request will", len(views), exc_info=error)
        self._metrics.appends_shed.inc(len(views))
        self._failed(engine.version, error)

    def _begun(self, version: str, report: WarmReport, now: float, *, ahead: bool = False, alone: bool = False) -> None:
        """The device was given appends; `ahead`: nobody asks for them."""
        self._metrics.appends.inc(report.users)
        self._metrics.append_tokens.inc(report.tokens)
        self._metrics.append_batches.inc(bool(report.users or report.tokens))
        step = Step(version, max(1, report.users), report.tokens)
        takes_s = self._pace.appending(now, step, prepared_s=report.prepared_s, ahead=ahead)
        self._running.append(_Running(step, report, alone, takes_s, self._pace.batches))

    def _failed(self, version: str, error: Exception) -> None:
        """The engine failed on what nobody was answered for yet."""
        if fault(error) is Fault.MEMORY:
            self._metrics.out_of_memory.inc()
            self._pace.cut(version)
        elif fault(error) is Fault.DEVICE:
            self._lose(error)

    def _expect(self, views: Sequence[HistoryView]) -> None:
        """Let the engines know who may ask soon. If one can't do anything for them, their requests will be slower."""
        versions = self._versions
        engines = versions.engines
        for engine in engines:
            own = views if len(engines) == 1 else [view for view in views if versions.of(view.user_id) is engine]
            try:
                engine.expect(own)
            except Exception as error:
                logger.exception("the engine failed to bring back %d users", len(own))
                if fault(error) is Fault.DEVICE:
                    self._lose(error)
                    return
