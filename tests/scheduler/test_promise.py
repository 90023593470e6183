"""A promise does what a future of concurrent.futures does, as far as the stream needs one."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from xgr_stream.scheduler.promise import Promise
from xgr_stream.types import RecommendResponse, Status

RESPONSE = RecommendResponse("r", "u", Status.OK)


@pytest.mark.parametrize("make", [Promise, Future])
def test_it_is_answered_once_started_and_tells_everybody(make: Any) -> None:
    promise, told = make(), []
    promise.add_done_callback(told.append)
    start = promise.start if make is Promise else promise.set_running_or_notify_cancel
    assert (start(), promise.done(), promise.cancel(), told) == (True, False, False, [])
    promise.set_result(RESPONSE)
    promise.add_done_callback(told.append)
    assert (promise.done(), promise.cancelled(), promise.cancel(), told) == (True, False, False, [promise, promise])
    assert promise.result(0) is RESPONSE


@pytest.mark.parametrize("make", [Promise, Future])
def test_it_can_be_withdrawn_until_it_is_started(make: Any) -> None:
    promise, told = make(), []
    promise.add_done_callback(told.append)
    assert (promise.cancel(), promise.cancel(), promise.done(), promise.cancelled()) == (True, True, True, True)
    assert told == [promise]
    assert not (promise.start() if make is Promise else promise.set_running_or_notify_cancel())
    with pytest.raises(CancelledError):
        promise.result(0)


def test_whoever_waits_for_it_is_woken() -> None:
    promise = Promise()
    with pytest.raises(TimeoutError):
        promise.result(0)
    waiting = threading.Event()

    def answer() -> None:
        waiting.wait(10)
        promise.start()
        promise.set_result(RESPONSE)

    thread = threading.Thread(target=answer)
    thread.start()
    waiting.set()
    assert promise.result(10) is RESPONSE
    thread.join(10)


def test_who_gave_up_waiting_leaves_nothing_behind() -> None:
    promise, told = Promise(), []
    promise.add_done_callback(told.append)
    for _ in range(100):
        with pytest.raises(TimeoutError):
            promise.result(0)
    assert promise._callbacks == [told.append]
    promise.start()
    promise.set_result(RESPONSE)
    assert told == [promise]
