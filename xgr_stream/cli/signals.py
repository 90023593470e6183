"""What a worker process does when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

NUMBERS = signal.SIGTERM, signal.SIGINT


class FirstSignal:
    """While it is entered, by the main thread, the first SIGTERM or SIGINT ends this process with 0: by `SystemExit`,
    wherever it is, until `calls` says what to call instead. Those behind it change nothing: a supervisor may send
    several, and the last of them would kill a process whose loop is closed, with everything answered and committed.
    """

    def __init__(self) -> None:
        self._came = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], object]

    def __enter__(self) -> Self:
        self._former = [(number, signal.signal(number, self._first)) for number in NUMBERS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._came:
            for number, former in self._former:
                signal.signal(number, former)
        elif self._loop is None and error is not None:  # it may be another: what was under way could not be undone
            raise SystemExit(0) from None

    def calls(self, stop: Callable[[], object]) -> None:
        """From now on it calls `stop` on the running loop."""
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        if self._came:  # and its SystemExit was raised where nothing can be, such as in a finalizer
            stop()

    def _first(self, _number: int, frame: FrameType | None) -> None:
        # Not the loop's own handlers: a signal that comes while they are taken away kills.
        self._came = True
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        if self._loop is None:
            if _imports(frame):
                os._exit(0)
            raise SystemExit(0)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._stop)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported here: an exception in one of C++ may abort the process, and nothing of ours is
    to be cleaned up yet."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def first_signal(command: Callable[..., Any]) -> Callable[..., Any]:
    """Have a command run within a `FirstSignal`, which it gets as `signals`. Goes next to `@click.command()`, so that
    the other options' work is within it, too."""

    @functools.wraps(command)
    def told(**options: Any) -> Any:
        with FirstSignal() as signals:
            return command(signals=signals, **options)

    return told
