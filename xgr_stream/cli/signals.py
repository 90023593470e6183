"""What a worker process does when it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


NUMBERS = signal.SIGTERM, signal.SIGINT


def on_first_signal(stop: Callable[[], object]) -> None:
    """Call `stop` at the first SIGTERM or SIGINT of the running loop's process. Those behind it change nothing: a
    supervisor may send several, and the last of them would kill a process whose loop is closed, with everything
    answered and committed."""
    loop = asyncio.get_running_loop()

    def first(*_: object) -> None:
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        loop.call_soon_threadsafe(stop)

    # Not the loop's own handlers: a signal that comes while they are taken away kills.
    for number in NUMBERS:
        signal.signal(number, first)
