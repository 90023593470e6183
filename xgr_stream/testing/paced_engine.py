"""A null engine whose batches take as long as a cost function says: an overload without a model."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from xgr_stream.history import HistoryView
from xgr_stream.testing.null_engine import NullEngine, Work
from xgr_stream.types import RecommendResponse


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a step takes: `fixed_ms`, and more for each beam of a decode and for each token that is appended."""

    fixed_ms: float = 4.0
    row_us: float = 4.0
    token_us: float = 4.0

    def seconds(self, rows: int, tokens: int) -> float:
        return self.fixed_ms / 1e3 + (rows * self.row_us + tokens * self.token_us) / 1e6


@dataclass(frozen=True, slots=True)
class PacedPendingAnswers:
    """Responses that the device has at `ready_at` (on `time.monotonic`)."""

    responses: list[RecommendResponse]
    ready_at: float

    def done(self) -> bool:
        return time.monotonic() >= self.ready_at

    def finish(self) -> list[RecommendResponse]:
        time.sleep(max(0.0, self.ready_at - time.monotonic()))
        return self.responses


@dataclass(frozen=True, slots=True)
class PacedWarmReport:
    users: int
    tokens: int
    took: float
    ready_at: float
    prepared_s: float = 0.0

    @property
    def seconds(self) -> float | None:
        return self.took if time.monotonic() >= self.ready_at else None


class PacedEngine(NullEngine):
    """Works on one step after the other, beside the thread that calls it, as a GPU does."""

    def __init__(self, times: StepTimes | None = None, *, beam_width: int = 64, **options: Any) -> None:
        super().__init__(**options)
        self.times = times or StepTimes()
        self._beam_width = beam_width
        self._free_at = 0.0

    def begin(self, requests: Work) -> PacedPendingAnswers:  # type: ignore[override]
        rows = sum(request.rows(self._beam_width) for request, _ in requests)
        tokens = sum(0 if view is None else self.pending_tokens(view) for _, view in requests)
        return PacedPendingAnswers(super().begin(requests).finish(), self._busy(self.times.seconds(rows, tokens)))

    def warm(self, views: Sequence[HistoryView]) -> PacedWarmReport:  # type: ignore[override]
        report = super().warm(views)
        took = self.times.seconds(0, report.tokens)
        return PacedWarmReport(report.users, report.tokens, took, self._busy(took))

    def prefilling(self, view: HistoryView, chunk_tokens: int) -> Generator[PacedWarmReport, None, None]:  # type: ignore[override]
        for report in super().prefilling(view, chunk_tokens):
            took = self.times.seconds(0, report.tokens)
            yield PacedWarmReport(report.users, report.tokens, took, self._busy(took))

    def _busy(self, seconds: float) -> float:
        self._free_at = max(self._free_at, time.monotonic()) + seconds
        return self._free_at
