"""The device thread's gauges, set now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.versions import Versions

REPORT_S = 0.05
"""How often they are set: it takes as long as beginning a batch."""


class Gauges:
    """What the engines' state is, in the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._set_at = float("-inf")
        self._counted: dict[tuple[str, str], int] = {}
        """By version and name, of the engines that are there."""
        self.behind = False
        """Whether something happened since they were set."""

    @property
    def due(self) -> bool:
        """Whether it is time to set them."""
        self.behind = time.monotonic() < self._set_at + REPORT_S
        return not self.behind

    def set(self, versions: Versions[Any], depths: Mapping[str, int]) -> None:
        self._set_at = time.monotonic()
        metrics = self._metrics
        by_version = {engine.version: engine.stats() for engine in versions.engines}
        metrics.users_warm.set(sum(stats.users_warm for stats in by_version.values()))
        metrics.cache_bytes.labels("used").set(sum(stats.bytes_used for stats in by_version.values()))
        metrics.cache_bytes.labels("budget").set(sum(stats.bytes_budget for stats in by_version.values()))
        metrics.set_models(by_version)
        counted, self._counted = self._counted, {}
        for name, counter in (("beams_dead", metrics.beams_dead), ("invalid_items", metrics.invalid_items)):
            for version, stats in by_version.items():
                total: int = getattr(stats, name)
                counter.inc(total - counted.get((version, name), 0))
                self._counted[version, name] = total
        for queue, depth in depths.items():
            metrics.queue_depth.labels(queue).set(depth)
