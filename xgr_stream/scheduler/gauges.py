"""The device thread's gauges, set now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping

from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.ports import EngineStats

REPORT_S = 0.05
"""How often they are set: it takes as long as beginning a batch."""


class Gauges:
    """What the engine's state is, in the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._set_at = float("-inf")
        self._counted = {"beams_dead": 0, "invalid_items": 0}
        self.behind = False
        """Whether something happened since they were set."""

    @property
    def due(self) -> bool:
        """Whether it is time to set them."""
        self.behind = time.monotonic() < self._set_at + REPORT_S
        return not self.behind

    def set(self, stats: EngineStats, depths: Mapping[str, int]) -> None:
        self._set_at = time.monotonic()
        metrics = self._metrics
        metrics.users_warm.set(stats.users_warm)
        metrics.cache_bytes.labels("used").set(stats.bytes_used)
        metrics.cache_bytes.labels("budget").set(stats.bytes_budget)
        for name, counter in (("beams_dead", metrics.beams_dead), ("invalid_items", metrics.invalid_items)):
            total: int = getattr(stats, name)
            counter.inc(total - self._counted[name])
            self._counted[name] = total
        for queue, depth in depths.items():
            metrics.queue_depth.labels(queue).set(depth)
