"""The device thread: what it does, in which order, and how it ends."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import pytest

from tests.scheduler.devices import Device, Gate
from xgr_stream.config import EngineConfig
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.policy import APPEND_AGEING_S
from xgr_stream.scheduler.switch_interval import SWITCH_INTERVAL_S
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.null_engine import NullEngine, NullWarmReport
from xgr_stream.types import CacheState, RecommendRequest, RecommendResponse, Status, UserEvent


def test_a_request_is_answered(device: Device) -> None:
    response = device.worker.submit(RecommendRequest("r", "u"), device.view("u", 3), None).result(10)
    assert (response.status, response.event_count, response.cache) == (Status.OK, 3, CacheState.COLD)


def test_waiting_requests_are_answered_together_within_the_row_budget() -> None:
    device = Device(config=EngineConfig(beam_width=512, max_batch_rows=1024))
    gate = Gate(device.engine)
    device.worker.start()
    futures = [device.worker.submit(RecommendRequest("r0", "u"), None, None)]
    assert gate.entered.wait(10)
    futures += [device.worker.submit(RecommendRequest(f"r{i}", "u"), None, None) for i in range(1, 4)]
    gate.go_on.set()
    assert [future.result(10).request_id for future in futures] == ["r0", "r1", "r2", "r3"]
    assert gate.batches == [["r0"], ["r1", "r2"], ["r3"]]
    assert device.worker.stop(5)


def test_a_user_is_warmed_when_nobody_waits(device: Device) -> None:
    device.worker.want_append(device.view("u", 2))
    while device.worker.queue_depths()["append"] or not device.engine.is_resident("u"):
        device.settle()
    device.settle()
    for name, count in (("appends", 1), ("append_tokens", 6), ("append_batches", 1)):
        assert device.metrics.registry.get_sample_value(f"xgr_{name}_total") == count
    response = device.worker.submit(RecommendRequest("r", "u"), device.history.view("u"), None).result(10)
    assert response.cache is CacheState.WARM


def test_appends_are_coalesced_per_user_and_wait_for_requests() -> None:
    device = Device()
    gate = Gate(device.engine)
    warmed: list[list[int]] = []
    warm = device.engine.warm

    def noted(views: Sequence[HistoryView]) -> NullWarmReport:
        warmed.append([view.event_count for view in views])
        return warm(views)

    device.engine.warm = noted  # type: ignore[method-assign]
    device.worker.start()
    first = device.worker.submit(RecommendRequest("r0", "v"), None, None)
    assert gate.entered.wait(10)
    for _ in range(3):
        device.worker.want_append(device.view("u"))
    second = device.worker.submit(RecommendRequest("r1", "v"), None, None)
    second.add_done_callback(lambda _: warmed.append([]))
    gate.go_on.set()
    first.result(10)
    second.result(10)
    while not device.engine.is_resident("u"):
        device.settle()
    assert warmed == [[], [3]]
    assert device.worker.stop(5)


def test_an_event_does_not_wait_for_requests_for_ever() -> None:
    """Requests without end: an append goes before them once it is due."""
    device = Device()
    device.engine.warm([device.view("u")])
    behind: list[tuple[int, int]] = []
    done = threading.Event()

    def another(requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> None:
        """On the device thread, in the middle of each batch: the next request, so that there always is one."""
        device.clock.advance(APPEND_AGEING_S / 4)
        behind.append((len(requests), device.engine.pending_tokens(device.history.view("u"))))  # type: ignore[arg-type]
        if len(behind) == 2:
            device.worker.want_append(device.view("u"))
        if len(behind) < 12:
            device.worker.submit(RecommendRequest(f"r{len(behind)}", "w"), None, None)
        else:
            done.set()

    device.engine.before_answer = another
    device.worker.start()
    device.worker.submit(RecommendRequest("r", "w"), None, None)
    assert done.wait(10)
    assert device.worker.stop(5)
    waiting = [tokens > 0 for _, tokens in behind]
    assert waiting[:5] == [False, False, True, True, True]
    assert not any(waiting[8:])


def test_a_full_cache_is_not_filled_ahead() -> None:
    device = Device(NullEngine(bytes_budget=1))
    device.engine.warm([device.view("resident")])
    device.worker.start()
    device.worker.want_append(device.view("u"))
    device.worker.want_append(device.view("resident"))
    while device.engine.pending_tokens(device.history.view("resident")):  # type: ignore[arg-type]
        device.settle()
    device.settle()
    assert device.worker.stop(5)
    assert not device.engine.is_resident("u")


def test_an_expired_request_is_not_decoded() -> None:
    device = Device()
    gate = Gate(device.engine)
    device.worker.start()
    device.worker.submit(RecommendRequest("r0", "u"), None, None)
    assert gate.entered.wait(10)
    late = device.worker.submit(RecommendRequest("late", "u"), None, device.clock.now() + 1)
    withdrawn = device.worker.submit(RecommendRequest("withdrawn", "u"), None, None)
    assert withdrawn.cancel()
    device.clock.advance(1.5)
    gate.go_on.set()
    response = late.result(10)
    assert response.error == "deadline_exceeded"
    assert "1500 ms in the decode queue" in (response.message or "")
    assert device.worker.stop(5)
    assert gate.batches == [["r0"]]


def test_forgetting_drops_prefixes_and_waiting_appends(device: Device) -> None:
    device.worker.submit(RecommendRequest("r", "u"), device.view("u"), None).result(10)
    device.worker.forget(["u", "unknown"])
    device.settle()
    assert not device.engine.is_resident("u")


def test_stopping_answers_what_was_submitted() -> None:
    device = Device()
    futures = [device.worker.submit(RecommendRequest(f"r{i}", "u"), None, None) for i in range(100)]
    device.worker.start()
    assert device.worker.stop(5)
    assert {future.result(0).status for future in futures} == {Status.UNKNOWN_USER}
    late = device.worker.submit(RecommendRequest("late", "u"), None, None).result(0)
    assert late.error == "shutting_down"
    with pytest.raises(Exception, match="shutting down"):
        device.worker.call(lambda: None).result(0)


def test_stopping_refuses_what_it_has_no_time_for() -> None:
    device = Device()
    gate = Gate(device.engine)
    device.worker.start()
    running = device.worker.submit(RecommendRequest("r0", "u"), None, None)
    assert gate.entered.wait(10)
    waiting = device.worker.submit(RecommendRequest("r1", "u"), None, None)
    assert not device.worker.stop(0)
    gate.go_on.set()
    assert running.result(10).status is Status.UNKNOWN_USER
    assert waiting.result(10).error == "shutting_down"


def test_a_worker_that_never_started_refuses_what_it_was_given() -> None:
    device = Device()
    future = device.worker.submit(RecommendRequest("r", "u"), None, None)
    assert device.worker.stop(5)
    assert future.result(0).error == "shutting_down"


def test_the_switch_interval_is_restored() -> None:
    before = sys.getswitchinterval()
    device = Device()
    device.worker.start()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    device.worker.stop(5)
    assert sys.getswitchinterval() == pytest.approx(before)


def test_the_switch_interval_is_short_until_the_last_worker_of_several_stops() -> None:
    before = sys.getswitchinterval()
    first, second = Device(), Device()
    first.worker.start()
    second.worker.start()
    first.worker.stop(5)
    first.worker.stop(5)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    second.worker.stop(5)
    assert sys.getswitchinterval() == pytest.approx(before)


def test_responses_are_what_the_engine_gave(device: Device) -> None:
    view = device.view("u", 2)
    future = device.worker.submit(RecommendRequest("r", "u", k=2), view, None)
    expected: RecommendResponse = NullEngine().answer([(RecommendRequest("r", "u", k=2), view)])[0]
    assert future.result(10) == expected


def test_every_wanted_append_is_done_when_there_is_time() -> None:
    engine = NullEngine()
    worker = DeviceWorker(engine, EngineConfig(), SystemClock(), Metrics())
    worker.start()
    history = HistoryStore()
    for i in range(50):
        history.apply(UserEvent(f"user-{i}", "item-1"))
        view = history.view(f"user-{i}")
        assert view is not None
        worker.want_append(view)
    while engine.stats().users_warm < 50:
        worker.call(lambda: None).result(10)
    assert worker.stop(5)
