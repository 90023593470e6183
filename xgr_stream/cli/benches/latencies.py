"""What became of the requests and events of one run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xgr_stream.stream.protocol import Message
from xgr_stream.types import CacheState

STAGES = ("wait", "append", "decode")


@dataclass(slots=True)
class Outcomes:
    """Filled in while a run goes on; `row` sums it up."""

    timeout_s: float
    ok_s: list[float] = field(default_factory=list)
    """Produce to consumed response, of those that were answered with items."""
    ready_s: list[float] = field(default_factory=list)
    """Of those, whose users had a prefix."""
    refused_s: list[float] = field(default_factory=list)
    """Consumed to answered, of those refused with `over_capacity`."""
    errors: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    stages_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    caches: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    warm_s: list[float] = field(default_factory=list)
    """Produced to part of the user's prefix, of events."""

    @property
    def answered(self) -> int:
        return len(self.ok_s) + sum(self.errors.values())

    def note(self, response: Message, seconds: float, since_consumed: float | None = None) -> None:
        """A response came, `seconds` after its request was due. `since_consumed`: seconds since it was consumed (None:
        by what the response says)."""
        stages: Mapping[str, float] = response["stages_ms"]
        error = response.get("error")
        if error is not None:
            self.errors[error] += 1
            if error == "over_capacity":
                self.refused_s.append(stages.get("total", 0.0) / 1e3 if since_consumed is None else since_consumed)
            return
        self.ok_s.append(seconds)
        if response["cache"] != CacheState.COLD:
            self.ready_s.append(seconds)
        self.caches[response["cache"]] += 1
        for stage in STAGES:
            self.stages_ms[stage].append(stages.get(stage, 0.0))
        self.stages_ms["stream"].append(seconds * 1e3 - stages["total"])

    def row(self, sent: int, seconds: float) -> dict[str, object]:
        """Figures of a run of `seconds` and so many requests."""
        in_time = sum(latency <= self.timeout_s for latency in self.ok_s)
        row: dict[str, object] = {
            "answered": self.answered,
            "goodput": in_time / seconds,
            "p50_ms": _percentile(self.ok_s, 50),
            "p99_ms": _percentile(self.ok_s, 99),
            "ready_p99_ms": _percentile(self.ready_s, 99),
            "refused": self.errors["over_capacity"],
            "late": self.errors["deadline_exceeded"] + len(self.ok_s) - in_time,
            "unanswered": sent - self.answered,
            "errors": dict(self.errors),
            "caches": dict(self.caches),
        }
        if self.refused_s:
            row["refused_p99_ms"] = _percentile(self.refused_s, 99)
        if self.warm_s:
            row["warm_p99_ms"] = _percentile(self.warm_s, 99)
        for stage, times in self.stages_ms.items():
            row[f"{stage}_ms"] = float(np.median(times))
            row[f"{stage}_p99_ms"] = float(np.percentile(times, 99))
        return row


def _percentile(seconds: list[float], percent: float) -> float | None:
    if not seconds:
        return None
    values: NDArray[np.float64] = np.array(seconds) * 1e3
    return float(np.percentile(values, percent))
