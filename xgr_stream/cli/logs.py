"""What a worker process logs: warnings, each once in a while, however often a broker that is away causes it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

QUIET_S = 5.0
REMEMBERED = 1_000
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Repeats(logging.Filter):
    """Lets a message through once in `QUIET_S`, and says with the next one how many were left out since."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.name, record.getMessage()), self._clock()
        last, left_out = self._passed.get(key, (now - QUIET_S, 0))
        if now - last < QUIET_S:
            self._passed[key] = (last, left_out + 1)
            return False
        if len(self._passed) >= REMEMBERED:
            self._passed.clear()
        self._passed[key] = (now, 0)
        if left_out:
            record.msg, record.args = f"{key[1]} ({left_out} times more in {now - last:.0f} s)", None
        return True


def log_to_stderr() -> None:
    """Have this process log so. Where logging is set up already, it is left alone."""
    handler = logging.StreamHandler()
    handler.addFilter(Repeats())
    logging.basicConfig(level=logging.WARNING, format=FORMAT, handlers=[handler])
