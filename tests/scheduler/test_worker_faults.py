"""The device thread: whatever fails, every promise is kept, and what does not fail is done."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from tests.scheduler.devices import Device
from xgr_stream.config import EngineConfig
from xgr_stream.errors import OutOfMemory
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler import costs, work
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.clock import ManualClock
from xgr_stream.testing.null_engine import NullEngine, NullPendingAnswers
from xgr_stream.types import RecommendRequest, Status


def test_an_engine_error_answers_its_batch_and_the_thread_lives(device: Device) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a shape that nobody thought of")

    device.engine.before_answer = broken
    response = device.worker.submit(RecommendRequest("r", "u"), None, None).result(10)
    assert (response.request_id, response.status, response.error) == ("r", Status.ERROR, "engine")
    device.engine.before_answer = None
    assert device.worker.submit(RecommendRequest("r", "u"), None, None).result(10).status is Status.UNKNOWN_USER


def test_an_engine_that_miscounts_is_an_engine_error(device: Device) -> None:
    device.engine.begin = lambda requests: NullPendingAnswers([])  # type: ignore[method-assign]
    assert device.worker.submit(RecommendRequest("r", "u"), None, None).result(10).error == "engine"


def test_a_failing_append_or_plan_harms_no_request(device: Device) -> None:
    def broken(_: object) -> int:
        raise RuntimeError

    device.engine.warm = broken  # type: ignore[method-assign, assignment]
    device.worker.want_append(device.view("u"))
    assert device.worker.submit(RecommendRequest("r", "w"), None, None).result(10).status is Status.UNKNOWN_USER
    device.engine.pending_tokens = broken  # type: ignore[method-assign]
    assert device.worker.submit(RecommendRequest("r", "u"), device.view("u"), None).result(10).error == "engine"
    assert device.worker.submit(RecommendRequest("r", "w"), None, None).result(10).status is Status.UNKNOWN_USER


class FailsOnce(NullEngine):
    """The first time that it is asked, once it is told to."""

    fails = False

    def is_resident(self, user_id: str) -> bool:
        failing, self.fails = self.fails, False
        if failing:
            raise ValueError("is_resident")
        return super().is_resident(user_id)


def test_what_can_t_be_taken_in_harms_nothing_that_comes_with_it() -> None:
    device = Device(FailsOnce(), EngineConfig(prefill_chunk_tokens=30))
    device.worker.start()
    assert device.worker.submit(RecommendRequest("first", "u"), device.view("u"), None).result(10).error is None
    device.engine.fails = True
    with device.worker.together():
        failed, other = (
            device.worker.submit(RecommendRequest(request_id, "u"), device.view("u"), None)
            for request_id in ("failed", "other")
        )
    assert failed.result(10).error == "engine"
    assert other.result(10).error is None
    device.engine.fails = True
    device.worker.want_append(device.view("u"))
    device.settle()
    assert not device.engine.fails
    assert device.worker.submit(RecommendRequest("last", "u"), device.view("u"), None).result(10).error is None
    assert device.worker.queue_depths() == {"decode": 0, "append": 0}
    assert device.worker.stop(5)


class Unreadable:
    """The report of an append that can't be asked."""

    users, tokens = 1, 3

    @property
    def seconds(self) -> float:
        raise ValueError("seconds")


def test_an_append_whose_time_can_t_be_had_harms_no_later_request(device: Device) -> None:
    device.engine.warm = lambda views: Unreadable()  # type: ignore[method-assign,assignment,return-value]
    device.worker.want_append(device.view("u"))
    while device.worker.queue_depths()["append"]:
        device.settle()
    responses = [device.worker.submit(RecommendRequest(str(i), "v"), None, None).result(10) for i in range(3)]
    assert [response.error for response in responses][1:] == [None, None]


def test_a_failing_call_is_reported_to_its_caller(device: Device) -> None:
    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        device.worker.call(broken).result(10)
    device.settle()


@pytest.mark.parametrize("call", ["call", "between_batches"])
def test_a_device_that_is_lost_in_a_call_is_lost(device: Device, call: str) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="CUDA error"):
        getattr(device.worker, call)(broken).result(10)
    assert device.worker.submit(RecommendRequest("r", "u"), None, None).result(10).error == "device_lost"
    assert device.worker.lost is not None


class FailsAt:
    """What a batch uses outside the engine; it fails the `time`-th time that `name` is asked of it."""

    def __init__(self, inner: object, name: str, time: int = 1) -> None:
        self._inner = inner
        self._name = name
        self._times = time
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            self._times -= 1
            if self._times == 0:
                self.failed = True
                raise ValueError(name)
        return getattr(self._inner, name)


@pytest.mark.parametrize(
    ("part", "name", "time", "of_engine", "expected"),
    [
        ("_clock", "now", 1, None, "engine"),
        ("_choice", "engine_of", 1, None, "engine"),
        ("_choice", "step_of", 1, None, "engine"),
        ("_pace", "begins", 1, None, "engine"),
        ("_clock", "now", 2, None, None),
        ("_pace", "begun", 1, None, None),
        ("_clock", "now", 3, None, "engine"),
        ("_pace", "ended", 1, None, None),
        ("_pace", "kept", 1, None, None),
        ("_shadow", "answered", 1, None, None),
        ("_metrics", "requests_dropped", 1, None, None),
        ("_metrics", "count_model", 1, None, None),
        ("_versions", "challenger", 1, None, None),
        ("_versions", "shadow", 1, None, None),
        ("_pace", "left", 1, ValueError("a shape"), "engine"),
        ("_pace", "cut", 1, OutOfMemory("full"), "out_of_memory"),
        ("_metrics", "out_of_memory", 1, OutOfMemory("full"), "out_of_memory"),
        ("_queue", "put_back", 1, OutOfMemory("full"), "out_of_memory"),
        ("_prefills", "give_way", 1, OutOfMemory("full"), "out_of_memory"),
    ],
)
def test_whatever_fails_around_a_batch_its_promises_are_kept(
    part: str,
    name: str,
    time: int,
    of_engine: Exception | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "LONG", 0.0)  # what is foreseen is compared for all with a deadline
    device = Device()
    worker, decoding = device.worker, device.worker._decoding
    worker._versions.challenge(NullEngine(version="shadow"), "shadow", 1.0)
    device.engine.before_answer = lambda _: device.clock.advance(1)
    worker.start()
    for i in range(6):  # so that it is known what they take
        worker.submit(RecommendRequest(f"before-{i}", "u"), device.view("u"), None).result(10)
    device.settle()

    def failing(_: object) -> None:
        if of_engine is not None:
            raise of_engine

    device.engine.before_answer = failing
    broken, deadline = FailsAt(getattr(decoding, part), name, time), device.clock.now() + 100
    setattr(decoding, part, broken)
    with worker.together():
        promises = [
            worker.submit(RecommendRequest(f"r{i}", "u"), device.view("u"), deadline if i == 2 else None)
            for i in range(3)
        ]
        assert worker.submit(RecommendRequest("withdrawn", "u"), None, None).cancel()
    assert {promise.result(10).error for promise in promises} == {expected}
    device.settle()
    assert broken.failed
    device.engine.before_answer = None
    assert worker.submit(RecommendRequest("after", "u"), device.view("u"), None).result(10).error is None
    assert worker.queue_depths()["decode"] == 0
    assert worker.stop(5)


def test_a_fit_that_fails_once_leaves_nobody_without_an_answer(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        monkeypatch.undo()
        raise np.linalg.LinAlgError("SVD did not converge in Linear Least Squares")

    monkeypatch.setattr(costs, "_fitted", broken)
    fitted = costs._fitted
    for i in range(6):
        assert device.worker.submit(RecommendRequest(f"r{i}", "u"), device.view("u"), None).result(10).error is None
    device.settle()
    assert costs._fitted is not fitted
    assert device.worker._pace.idle


def test_a_callback_that_raises_keeps_no_answer_from_others(device: Device) -> None:
    def broken(_: object) -> None:
        raise ValueError("callback")

    with device.worker.together():
        first, second = (device.worker.submit(RecommendRequest(f"r{i}", "u"), None, None) for i in range(2))
        told: list[object] = []
        first.add_done_callback(broken)
        first.add_done_callback(told.append)
    assert second.result(10).error is None
    assert told == [first]


def test_what_came_together_with_a_fault_of_the_thread_s_is_still_looked_at(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only the item's own, which is its answer, but one in giving that answer."""
    prefills = device.worker._prefills

    def broken(_: object) -> None:
        raise ValueError("look_at")

    def removed(_: object) -> None:
        monkeypatch.undo()
        raise ValueError("remove")

    monkeypatch.setattr(prefills, "look_at", broken)
    monkeypatch.setattr(device.worker._queue, "remove", removed)
    with device.worker.together():
        request = device.worker.submit(RecommendRequest("r", "u"), device.view("u"), None)
        called = device.worker.call(lambda: 7)
    assert request.result(10).error == "engine"
    assert called.result(10) == 7
    assert device.worker.submit(RecommendRequest("after", "u"), device.view("u"), None).result(10).error is None


def test_a_call_that_wants_to_end_the_thread_ends_only_itself(device: Device) -> None:
    with pytest.raises(SystemExit):
        device.worker.call(sys.exit).result(10)
    device.settle()


def test_a_listener_that_fails_at_a_lost_device_keeps_no_answer_from_anybody() -> None:
    def broken(_: object) -> None:
        raise ValueError("listener")

    worker = DeviceWorker(NullEngine(), EngineConfig(), ManualClock(), Metrics(), on_lost=broken)

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with worker.together():
        first, second = worker.call(lost), worker.call(lambda: 7)
        request = worker.submit(RecommendRequest("r", "u"), None, None)
    worker.start()
    with pytest.raises(RuntimeError, match="CUDA error"):
        first.result(10)
    assert second.result(10) == 7
    assert request.result(10).error == "device_lost"
    assert worker.alive
    assert worker.stop(5)
