"""Faust's consumer, without the detour that each record takes through its loop.

For every record it makes four tasks (the delivery, and three that wait for reasons to break it off), waits for the
first of them and cancels the others: two thirds of all that Faust does for a record. A delivery is done without waiting
for anything unless an actor's queue is full or a rebalance is on, so it is tried first, and only what does have to wait
takes the detour, from where it has come to.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import partial
from inspect import iscoroutine
from types import MethodType
from typing import Any

import faust
from mode.services import WaitResults

_MARK = "_xgr_delivers_at_once"


def deliver_at_once(app: faust.App) -> None:
    """Have the app's consumer, which must be there, deliver records so. Does nothing the second time."""
    consumer: Any = app.consumer
    if not hasattr(consumer, _MARK):
        setattr(consumer, _MARK, True)
        consumer.wait_first = MethodType(partial(_wait_first, consumer.wait_first), consumer)


async def _wait_first(usual: Callable[..., Any], consumer: Any, *waited_for: Any, **options: Any) -> WaitResults:
    """`Service.wait_first`. What comes first is tried first, if Faust would begin with it and nothing is to stop it."""
    first, *others = waited_for
    found: WaitResults
    if not iscoroutine(first) or consumer.should_stop or consumer.crashed or consumer.suspend_flow.is_set():
        found = await usual(*waited_for, **options)
        return found
    try:
        waits_for = first.send(None)
    except BaseException as ended:
        for other in filter(iscoroutine, others):
            other.close()
        if isinstance(ended, StopIteration):
            return WaitResults([first], [ended.value], stopped=False)
        raise
    found = await usual(_Begun(first, waits_for), *others, **options)
    return found


class _Begun:
    """A coroutine that has been begun and waits for something: to be awaited in another task."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._waits_for
        while True:
            step: Callable[[], Any]
            try:
                step = partial(self._coroutine.send, (yield waits_for))
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001  a cancellation, for the coroutine to see
                step = partial(self._coroutine.throw, error)
            try:
                waits_for = step()
            except StopIteration as done:
                return done.value
