"""What a shadow version computes, in time that nobody else needs, and how far it agrees with what users got."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection
from typing import Any, NamedTuple

from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.appends import AppendQueue
from xgr_stream.scheduler.faults import Fault, fault
from xgr_stream.scheduler.ports import DeviceEngine
from xgr_stream.scheduler.versions import Versions
from xgr_stream.types import RecommendRequest, RecommendResponse, Status

logger = logging.getLogger(__name__)

MAX_WAITING = 64
"""Comparisons that wait at most: who asks says little more than who asked a moment ago, so the oldest are shed."""
MAX_USERS = 10_000
"""Users whose prefixes wait at most; a comparison appends what its user's still lacks."""
MAX_LOGGED = 10
"""Failures of one version that are logged; all are counted."""
POLL_S = 5e-5


class _Asked(NamedTuple):
    """A request, from which view it was answered, and what."""

    request: RecommendRequest
    view: HistoryView
    response: RecommendResponse


class Shadow:
    """The work of the version that `versions` has as its shadow, if any. It fails alone, unless the device is lost.

    On the device thread, one user at a time: `step` is called while nothing else is to be done, and a request that
    comes meanwhile waits for one step at most.
    """

    def __init__(self, versions: Versions[Any], metrics: Metrics) -> None:
        self._versions = versions
        self._metrics = metrics
        self._asked: deque[_Asked] = deque()
        self._appends = AppendQueue(MAX_USERS)
        self._version: str | None = None
        """Whose work waits."""
        self._failures = 0

    def want(self, view: HistoryView) -> None:
        """The user did something: bring the shadow's prefix up to this view too, if they are one of its users."""
        engine = self._engine_for(view.user_id)
        if engine is not None:
            self._appends.put(view, engine.is_resident(view.user_id), 0.0)  # nobody asks since when

    def answered(self, request: RecommendRequest, view: HistoryView | None, response: RecommendResponse) -> None:
        """The primary's answer; it is compared later. Only the best items from one's history are compared."""
        engine = self._engine_for(request.user_id)
        if engine is None or view is None or response.status is not Status.OK:
            return
        if request.candidates is not None or request.temperature is not None:
            return
        if len(self._asked) >= MAX_WAITING:
            self._asked.popleft()
            self._count(engine.version, "shed")
        self._asked.append(_Asked(request, view, response))

    def forget(self, user_ids: Collection[str]) -> None:
        """Nothing of these users is computed any more."""
        gone = set(user_ids)
        self._appends.remove(gone)
        self._asked = deque(asked for asked in self._asked if asked.view.user_id not in gone)

    @property
    def waits(self) -> bool:
        """Whether there is something to do."""
        return (bool(self._asked) or len(self._appends) > 0) and self._engine() is not None

    def step(self) -> None:
        """Compare one answer, or bring one prefix up to date. Raises only what says that the device is lost."""
        engine = self._engine()
        if engine is None:
            return
        try:
            if self._asked:
                self._compare(engine, self._asked.popleft())
                return
            (view,) = self._appends.first(1)
            self._appends.remove([view.user_id])
            report = engine.warm([view])
            while report.seconds is None:  # the next step is another turn's
                time.sleep(POLL_S)
        except Exception as error:
            if fault(error) is Fault.DEVICE:
                raise
            self._failed(engine.version, error)

    def _compare(self, engine: DeviceEngine, asked: _Asked) -> None:
        (own,) = engine.begin([(asked.request, asked.view)]).finish()
        response = asked.response
        if own.status is not Status.OK:
            self._count(engine.version, own.error or own.status.value)
        elif own.event_count != response.event_count:
            self._count(engine.version, "outdated")
        else:
            self._count(engine.version, "compared")
            for answer in (own, response):
                self._metrics.observe_model(answer.model_version, answer.stages_ms)
            self._metrics.observe_overlap(engine.version, overlap(response, own))

    def _failed(self, version: str, error: Exception) -> None:
        self._count(version, "memory" if fault(error) is Fault.MEMORY else "failed")
        self._failures += 1
        if self._failures <= MAX_LOGGED:
            logger.error("the shadow %s failed; users' answers are the primary's", version, exc_info=error)

    def _count(self, version: str, outcome: str) -> None:
        self._metrics.count_shadow(version, outcome)

    def _engine_for(self, user_id: str) -> DeviceEngine | None:
        shadow = self._versions.shadow
        return self._engine() if shadow is not None and shadow.has(user_id) else None

    def _engine(self) -> DeviceEngine | None:
        """The shadow now. What waited for another one is dropped."""
        shadow = self._versions.shadow
        version = None if shadow is None else shadow.engine.version
        if version != self._version:
            self._version, self._failures = version, 0
            self._asked.clear()
            self._appends.clear()
        return None if shadow is None else shadow.engine


def overlap(one: RecommendResponse, other: RecommendResponse) -> float:
    """The share of items that two answers have in common, of the longer one's; 1 if both are empty."""
    longest = max(len(one.items), len(other.items))
    common = {item.item_id for item in one.items} & {item.item_id for item in other.items}
    return len(common) / longest if longest else 1.0
