"""A clock that stands still until a test moves it."""

from __future__ import annotations


class ManualClock:
    """Both clocks of `xgr_stream.scheduler.clock.Clock`, moved together by `advance`."""

    def __init__(self, now: float = 1_000.0, wall_ms: int = 1_700_000_000_000) -> None:
        self._start = now
        self._now = now
        self._wall_start_ms = wall_ms

    def now(self) -> float:
        return self._now

    def wall_ms(self) -> int:
        return self._wall_start_ms + round((self._now - self._start) * 1000)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; they can't be negative."""
        if seconds < 0:
            raise ValueError(f"seconds must be at least 0, not {seconds!r}")
        self._now += seconds
