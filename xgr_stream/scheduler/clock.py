"""Time, as something that can be handed in: deadlines are tested with a clock that the test moves."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the scheduler and the stream need to know about time. Safe to call from any thread."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; its zero means nothing."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970, to compare with the timestamps of records."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
