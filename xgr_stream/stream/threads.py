"""What takes long, beside the event loop, and holds up nobody's end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def on_a_thread(function: Callable[[], T], name: str) -> T:
    """What `function` returns, on a thread that the process does not wait for at its end, as it does for those of
    `asyncio.to_thread`: a merge takes half a minute, a checkpoint minutes, or for ever where its disk is away."""
    future: Future[T] = Future()
    waiting = asyncio.wrap_future(future)
    _Thread(target=_run, args=(function, future), name=name, daemon=True).start()
    try:
        return await waiting
    finally:
        del future, waiting  # an error that they hold would hold this frame, and half a model, until a collection


def under_way() -> bool:
    """Whether a function still runs that nobody waits for any more, or will."""
    return any(isinstance(thread, _Thread) for thread in threading.enumerate())


class _Thread(threading.Thread):
    """One of these."""


def _run(function: Callable[[], T], future: Future[T]) -> None:
    try:
        found = function()
    except BaseException as error:  # noqa: BLE001, it is raised where it is waited for
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
    else:
        if future.set_running_or_notify_cancel():
            future.set_result(found)
    finally:
        del future  # likewise
