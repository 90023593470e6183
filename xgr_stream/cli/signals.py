"""What a worker process does when it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def on_first_signal(stop: Callable[[], object]) -> None:
    """Call `stop` at the first SIGTERM or SIGINT of the running loop's process. Those behind it change nothing: a
    supervisor may send several, and the last of them would kill a process whose loop is closed, with everything
    answered and committed."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def first() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        stop()

    for number in numbers:
        loop.add_signal_handler(number, first)
