"""The device thread's gauges, set now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import Counter

from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.ports import TierStats
from xgr_stream.scheduler.versions import Versions

REPORT_S = 0.05
"""How often they are set: it takes as long as beginning a batch."""

IDLE_REPORT_S = 0.5
"""How often they are set while there is nothing to do: copies between the tiers end meanwhile."""


class Gauges:
    """What the engines' state is, in the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._set_at = float("-inf")
        self._counted: dict[tuple[str, str], float] = {}
        """By version and name, of the engines that are there."""
        self._behind = False
        """Whether something happened since they were set."""

    @property
    def due(self) -> bool:
        """Whether it is time to set them."""
        self._behind = time.monotonic() < self._set_at + REPORT_S
        return not self._behind

    @property
    def wait_s(self) -> float:
        """How long to wait for something to happen before they are set once more."""
        return REPORT_S if self._behind else IDLE_REPORT_S

    def set(self, versions: Versions[Any], depths: Mapping[str, int]) -> None:
        self._set_at = time.monotonic()
        metrics = self._metrics
        by_version = {engine.version: engine.stats() for engine in versions.engines}
        metrics.users_warm.set(sum(stats.users_warm for stats in by_version.values()))
        metrics.cache_bytes.labels("used").set(sum(stats.bytes_used for stats in by_version.values()))
        metrics.cache_bytes.labels("budget").set(sum(stats.bytes_budget for stats in by_version.values()))
        metrics.set_models(by_version)
        counted, self._counted = self._counted, {}
        tiers = {version: stats.tiers for version, stats in by_version.items() if stats.tiers is not None}
        self._set_tiers(list(tiers.values()))
        for version, stats in by_version.items():
            figures: list[tuple[str, Counter, float]] = [
                ("beams_dead", metrics.beams_dead, stats.beams_dead),
                ("invalid_items", metrics.invalid_items, stats.invalid_items),
            ]
            figures += self._counts_of(tiers[version]) if version in tiers else []
            for name, counter, total in figures:
                counter.inc(total - counted.get((version, name), 0))
                self._counted[version, name] = total
        for queue, depth in depths.items():
            metrics.queue_depth.labels(queue).set(depth)

    def _set_tiers(self, tiers: Sequence[TierStats]) -> None:
        users, size = self._metrics.tier_users, self._metrics.tier_bytes
        users.labels("host").set(sum(each.host_users for each in tiers))
        size.labels("host", "used").set(sum(each.host_bytes_used for each in tiers))
        size.labels("host", "budget").set(sum(each.host_bytes_budget for each in tiers))
        users.labels("file").set(sum(each.file_users for each in tiers))
        size.labels("file", "used").set(sum(each.file_bytes_used for each in tiers))
        size.labels("file", "budget").set(sum(each.file_bytes_budget for each in tiers))

    def _counts_of(self, tiers: TierStats) -> list[tuple[str, Counter, float]]:
        """(name, counter, total since the engine was loaded)"""
        metrics = self._metrics
        return [
            ("demoted", metrics.tier_moves.labels("out"), tiers.demoted),
            ("demoted_bytes", metrics.tier_moved_bytes.labels("out"), tiers.demoted_bytes),
            ("demoted_s", metrics.tier_move_seconds.labels("out"), tiers.demoted_s),
            ("promoted", metrics.tier_moves.labels("in"), tiers.promoted),
            ("promoted_bytes", metrics.tier_moved_bytes.labels("in"), tiers.promoted_bytes),
            ("promoted_s", metrics.tier_move_seconds.labels("in"), tiers.promoted_s),
            ("file_written", metrics.tier_file_copies.labels("out"), tiers.file_written),
            ("file_read", metrics.tier_file_copies.labels("in"), tiers.file_read),
            ("file_failures", metrics.tier_file_failures, tiers.file_failures),
            ("recomputed", metrics.tier_recomputed, tiers.recomputed),
            ("dropped", metrics.tier_dropped, tiers.dropped),
        ]
