"""What the device is given next: a batch of one version of the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.appends import AppendQueue
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.faults import Fault, fault
from xgr_stream.scheduler.pace import Pace, Step
from xgr_stream.scheduler.policy import WaitingAppend, WaitingRequest, choose
from xgr_stream.scheduler.ports import DeviceEngine
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.work import Work, WorkQueue

logger = logging.getLogger(__name__)

CONSIDERED = 256
"""Entries of each queue that one turn looks at."""


class Choice:
    """Puts what waits before the policy. Used by the device thread."""

    def __init__(
        self,
        versions: Versions[Any],
        queue: WorkQueue,
        appends: AppendQueue,
        pace: Pace,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._versions = versions
        self._queue = queue
        self._appends = appends
        self._pace = pace
        self._clock = clock
        self._metrics = metrics

    def engine_of(self, work: Work) -> DeviceEngine:
        """The engine that is to answer."""
        engine: DeviceEngine = self._versions.primary if work.fell_back else self._versions.of(work.request.user_id)
        return engine

    def next(
        self,
        waiting: Sequence[Work],
        *,
        overloaded: bool,
        appends: bool,
        prefill: bool,
        most_ahead: float = float("inf"),
    ) -> tuple[list[Work], list[HistoryView]]:
        """What the policy picks: requests, or users to append to if there is to be such a batch (`appends`).
        `overloaded`: requests were refused since the last time. `prefill`: somebody waits for theirs, so that only
        appends that are due go before it. `most_ahead`: tokens that a user without a prefix may lack for one."""
        now = self._clock.now()
        engine: DeviceEngine = self._versions.primary
        if waiting and self._versions.challenger is not None:
            engine = self.engine_of(waiting[0])
            waiting = [work for work in waiting if self.engine_of(work) is engine]
        pressed = overloaded or self._queue.pressed(now, self._pace.starts_at(now, engine.version))
        due = appends and not pressed and self._pace.are_due(self._appends.since, now)
        views: list[HistoryView] = []
        behind: list[WaitingAppend] = []
        if pressed or due or (appends and not prefill and not waiting):
            theirs, views, behind = self._behind(most_ahead)
            due = due and any(append.resident for append in behind)
            engine = theirs if due or not waiting else engine
        stats = engine.stats()
        budget = self._pace.budget_for(
            engine.version, behind, stats.bytes_used, stats.bytes_budget, pressed=pressed, appends_due=due
        )
        starts_at = now + self._pace.busy_s(now)
        batch = choose([self._waiting(engine, work, starts_at) for work in waiting], behind, budget)
        if batch.lazy:
            self._metrics.appends_shed.inc(len(batch.lazy))
            self._appends.remove(views[i].user_id for i in batch.lazy)
        return [waiting[i] for i in batch.requests], [views[i] for i in batch.appends]

    def step_of(self, engine: DeviceEngine, works: Sequence[Work]) -> Step:
        """What the device has to do for these requests."""
        tokens = sum(0 if work.view is None else engine.pending_tokens(work.view) for work in works)
        return Step(engine.version, sum(work.rows for work in works), tokens)

    def _waiting(self, engine: DeviceEngine, work: Work, starts_at: float) -> WaitingRequest:
        tokens = 0 if work.view is None else engine.pending_tokens(work.view)
        added_s = self._pace.added_s(Step(engine.version, work.rows, tokens))
        return WaitingRequest(work.rows, tokens, work.partition, added_s, work.due - starts_at)

    def _behind(self, most_ahead: float) -> tuple[DeviceEngine, list[HistoryView], list[WaitingAppend]]:
        """Users of one engine to append to. One that it can't say anything of harms no request."""
        views = self._appends.first(CONSIDERED)
        engine: DeviceEngine = self._versions.of(views[0].user_id) if views else self._versions.primary
        if self._versions.challenger is not None:
            views = [view for view in views if self._versions.of(view.user_id) is engine]
        try:
            waiting = []
            for view in views:
                tokens, resident = engine.pending_tokens(view), engine.is_resident(view.user_id)
                waiting.append(WaitingAppend(tokens, resident, not resident and tokens > most_ahead))
        except Exception as error:
            if fault(error) is Fault.DEVICE:
                raise
            logger.exception("the engine failed to plan %d appends; the users' next requests will", len(views))
            self._appends.remove(view.user_id for view in views)
            self._metrics.appends_shed.inc(len(views))
            return engine, [], []
        # Or each turn would look at them again before it comes to those whose appends they are.
        self._appends.turned_out(
            view.user_id for view, append in zip(views, waiting, strict=True) if not append.resident
        )
        return engine, views, waiting
