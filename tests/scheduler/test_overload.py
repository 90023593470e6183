"""The device thread when there is too much: refused at once, shed first, cut where memory ends, lost with an answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from xgr_stream.config import EngineConfig
from xgr_stream.errors import DeviceLost, OutOfMemory
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.appends import AppendQueue
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.faults import Fault, fault
from xgr_stream.scheduler.pace import Pace, Step
from xgr_stream.scheduler.policy import APPEND_AGEING_S, APPEND_SHARE
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.clock import ManualClock
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.testing.paced_engine import PacedEngine, StepTimes
from xgr_stream.types import RecommendRequest, RecommendResponse, Status, UserEvent

STEP_S = 0.05
ROUNDS = 5


def wait_until(condition: object, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


class Stage:
    def __init__(self, engine: NullEngine, **config: int) -> None:
        self.engine = engine
        self.metrics = Metrics()
        self.clock = SystemClock()
        self.lost: list[DeviceLost] = []
        self.worker = DeviceWorker(engine, EngineConfig(**config), self.clock, self.metrics, on_lost=self.lost.append)
        self.history = HistoryStore()
        self.asked = 0

    def view(self, user: str) -> HistoryView:
        self.history.apply(UserEvent(user, "item-1"))
        view = self.history.view(user)
        assert view is not None
        return view

    def ask(
        self, timeout_s: float | None = None, beam: int | None = None, partition: int = 0, k: int = 10
    ) -> Future[RecommendResponse]:
        self.asked += 1
        deadline = None if timeout_s is None else self.clock.now() + timeout_s
        request = RecommendRequest(f"r{self.asked}", "u", k, beam_width=beam)
        return self.worker.submit(request, None, deadline, partition=partition)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def slow() -> Iterator[Stage]:
    """An engine that takes 50 ms a request, one at a time, and is known to."""
    stage = Stage(PacedEngine(StepTimes(STEP_S * 1e3, 0, 0)), max_batch_rows=1024, beam_width=1024)
    stage.worker.start()
    for _ in range(6):
        assert stage.ask().result(10).status is Status.UNKNOWN_USER
    yield stage
    assert stage.worker.stop(10)


def test_a_request_that_cannot_be_in_time_is_refused_at_once(slow: Stage) -> None:
    waiting = [slow.ask() for _ in range(30)]
    # It would be the next, behind what the device is at, since the others can wait: that alone takes two steps.
    refused = slow.ask(timeout_s=STEP_S * 1.2)
    assert refused.done()
    assert not waiting[-1].done()
    response = refused.result(0)
    assert response.error == "over_capacity"
    assert "deadline could not be met" in (response.message or "")
    assert slow.ask(timeout_s=10).result(10).status is Status.UNKNOWN_USER
    assert all(future.result(10).status is Status.UNKNOWN_USER for future in waiting)


def test_under_overload_what_is_accepted_is_in_time(slow: Stage) -> None:
    # Other processes on the machine may stop this one for a while, which can only make it worse: the best round counts.
    rounds: list[tuple[int, int, int]] = []
    while len(rounds) < ROUNDS:
        futures = []
        for _ in range(60):
            futures.append(slow.ask(timeout_s=STEP_S * 10))
            time.sleep(STEP_S / 3)
        errors = [future.result(10).error for future in futures]
        rounds.append((errors.count("over_capacity"), errors.count(None), errors.count("deadline_exceeded")))
        refused, answered, late = rounds[-1]
        if refused > 20 and answered > 12 and late <= 3:
            return
    pytest.fail(f"refused, answered, too late in each round of 60: {rounds}")


def test_an_idle_device_is_tried_against_what_is_thought_of_it(slow: Stage) -> None:
    """Or it would never be known that it has become faster."""
    slow.engine.times = StepTimes(1.0, 0, 0)  # type: ignore[attr-defined]
    first = slow.ask(timeout_s=STEP_S / 2)
    assert first.result(10).error is None
    assert slow.ask(timeout_s=STEP_S / 2).result(10).error == "over_capacity"  # not twice a second


def test_appends_are_shed_when_requests_need_the_device(slow: Stage) -> None:
    waiting = [slow.ask(timeout_s=STEP_S * 12) for _ in range(8)]
    slow.worker.want_append(slow.view("u"))
    wait_until(lambda: slow.counted("xgr_appends_shed_total") == 1)
    assert all(future.result(10).error is None for future in waiting)
    assert not slow.engine.is_resident("u")


def test_requests_that_leave_the_queue_are_counted(slow: Stage) -> None:
    running = [slow.ask() for _ in range(3)]
    withdrawn = slow.ask()
    assert withdrawn.cancel()
    [future.result(10) for future in running]
    wait_until(lambda: slow.counted("xgr_requests_dropped_total", reason="cancelled") == 1)


def test_a_partition_that_floods_does_not_keep_another_waiting() -> None:
    stage = Stage(PacedEngine(StepTimes(STEP_S * 1e3, 0, 0)), max_batch_rows=2048, beam_width=1024)
    stage.worker.start()
    answered: list[bool] = []  # in the order of the answers: is it the other's
    flood = [stage.ask() for _ in range(30)]
    other = stage.ask(partition=1)
    for future in [*flood, other]:
        future.add_done_callback(lambda done: answered.append(done is other))
    wait_until(lambda: len(answered) == len(flood) + 1)
    assert answered.index(True) < 15
    assert stage.worker.stop(10)


class Limited(NullEngine):
    """Has memory for two requests at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.go_on = threading.Event()

    def begin(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]):  # type: ignore[no-untyped-def, override]
        self.go_on.wait(10)
        self.sizes.append(len(requests))
        if len(requests) > 2:
            raise OutOfMemory("8 pages asked for, but only 2 of 16 are free")
        return super().begin(requests)


def test_a_batch_that_does_not_fit_is_computed_in_parts() -> None:
    engine = Limited()
    stage = Stage(engine, beam_width=256, max_batch_rows=2048)
    stage.worker.start()
    with stage.worker.together():  # or the first batch is of fewer, whose half may fit
        futures = [stage.ask() for _ in range(9)]
    engine.go_on.set()
    assert [future.result(10).status for future in futures] == [Status.UNKNOWN_USER] * 9
    assert [future.result(10).request_id for future in futures] == [f"r{number}" for number in range(1, 10)]
    assert stage.counted("xgr_out_of_memory_total") >= 2
    assert stage.worker.stop(5)


@pytest.mark.parametrize("rows", [1, 8])
def test_requests_of_few_rows_that_find_no_memory_are_tried_alone_and_answered(rows: int) -> None:
    """However many of them the smallest batch would hold."""
    engine, tried = NullEngine(), []
    stage = Stage(engine, max_batch_rows=2048)

    def full(requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> None:
        tried.append(len(requests))
        raise OutOfMemory("8 pages asked for, but only 2 of 16 are free")

    engine.before_answer = full
    with stage.worker.together():
        futures = [stage.ask(beam=rows, k=rows) for _ in range(64)]
    stage.worker.start()
    assert {future.result(10).error for future in futures} == {"out_of_memory"}
    assert tried[-64:] == [1] * 64
    assert len(tried) <= 64 + 6
    engine.before_answer = None
    with stage.worker.together():
        futures = [stage.ask(beam=rows, k=rows) for _ in range(64)]
    assert {future.result(10).status for future in futures} == {Status.UNKNOWN_USER}
    assert stage.worker.stop(5)


def test_batches_of_requests_of_few_rows_grow_again() -> None:
    pace = Pace(EngineConfig(), ManualClock())

    def most() -> float:
        return pace.budget_for("", (), 0, 1, pressed=False).requests

    pace.cut("")  # by appends, or by one request alone
    assert most() == math.inf
    for requests in (64, 32, 3):
        pace.cut("", requests)
        assert most() == requests // 2
    for _ in range(50):
        pace.ended(0.0, Step("", 1, 0), ())
    assert most() > 8


def test_a_request_that_does_not_fit_alone_is_refused_and_the_worker_lives() -> None:
    engine = NullEngine()
    stage = Stage(engine)
    stage.worker.start()

    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    def full(_: object) -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    engine.before_answer = full
    assert stage.ask().result(10).error == "out_of_memory"
    engine.before_answer = None
    assert stage.ask().result(10).status is Status.UNKNOWN_USER
    assert stage.counted("xgr_out_of_memory_total") == 1
    assert stage.worker.stop(5)


def test_appends_that_do_not_fit_are_shed_and_the_worker_lives() -> None:
    engine = NullEngine()
    stage = Stage(engine)

    def full(_: object) -> None:
        raise OutOfMemory("8 pages asked for, but only 2 of 16 are free")

    engine.warm = full  # type: ignore[method-assign, assignment]
    stage.worker.start()
    stage.worker.want_append(stage.view("u"))
    wait_until(lambda: stage.counted("xgr_out_of_memory_total") == 1)
    assert stage.ask().result(10).status is Status.UNKNOWN_USER
    assert stage.worker.stop(5)


def test_a_lost_device_answers_everything_and_is_reported_once() -> None:
    engine = Limited()
    stage = Stage(engine, beam_width=1024, max_batch_rows=1024)

    def broken(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine.before_answer = broken
    stage.worker.start()
    futures = [stage.ask() for _ in range(5)]
    engine.go_on.set()
    assert [future.result(10).error for future in futures] == ["device_lost"] * 5
    wait_until(lambda: stage.lost)
    assert stage.ask().result(0).error == "device_lost"
    with pytest.raises(DeviceLost):
        stage.worker.call(lambda: None).result(0)
    assert len(stage.lost) == 1
    assert stage.worker.lost is stage.lost[0]
    assert stage.worker.stop(5)
    assert engine.sizes == [1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), Fault.DEVICE),
        (DeviceLost("gone"), Fault.DEVICE),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), Fault.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Fault.MEMORY),
        (MemoryError(), Fault.MEMORY),
        (ValueError("CUDA error"), Fault.OTHER),
        (RuntimeError("a shape that nobody thought of"), Fault.OTHER),
    ],
)
def test_what_an_error_means(error: Exception, expected: Fault) -> None:
    assert fault(error) is expected


def test_appends_wait_one_per_user_the_resident_first_and_never_too_many() -> None:
    history = HistoryStore()

    def view(user: str) -> HistoryView:
        history.apply(UserEvent(user, "item-1"))
        found = history.view(user)
        assert found is not None
        return found

    queue = AppendQueue(max_users=3)
    assert queue.put(view("cold"), resident=False, now=1) == 0
    assert queue.since == math.inf
    queue.put(view("a"), resident=True, now=2)
    queue.put(view("b"), resident=True, now=3)
    queue.put(view("a"), resident=True, now=4)
    assert queue.since == 2
    assert [(v.user_id, v.event_count) for v in queue.first(10)] == [("a", 2), ("b", 1)]
    assert queue.put(view("c"), resident=True, now=5) == 1  # the cold one is let go
    assert len(queue) == 3
    queue.remove(["a"])
    assert queue.since == 3
    queue.remove(["a", "b", "c"])
    assert queue.first(10) == []


def test_appends_that_are_due_leave_requests_most_of_the_time() -> None:
    clock = ManualClock()
    pace = Pace(EngineConfig(), clock)
    since = clock.now()
    assert not pace.are_due(since, since + 0.9 * APPEND_AGEING_S)
    assert pace.are_due(since, since + 1.1 * APPEND_AGEING_S)
    step, most = Step("", 4, 12), 0.01 / APPEND_SHARE
    pace.appended(step, 0.01)
    clock.advance(1.0)
    pace.appending(clock.now(), step, ahead=False)  # a chunk of a prefill
    assert pace.are_due(since, clock.now())
    pace.appending(clock.now(), step, ahead=True)
    assert not pace.are_due(since, clock.now() + 0.9 * most)
    assert pace.are_due(since, clock.now() + 1.1 * most)
    assert not pace.are_due(math.inf, clock.now() + most)


def test_a_prefill_in_chunks_is_foreseen_from_chunks_not_from_the_few_tokens_of_decodes() -> None:
    """A decode with 3 tokens to append takes 2 ms more; 5,000 of them do not take 3 s."""
    clock = ManualClock()
    pace = Pace(EngineConfig(prefill_chunk_tokens=512), clock)
    for tokens, seconds in [(0, 0.006), (3, 0.008)] * 5:
        begun = clock.now()
        clock.advance(seconds)
        pace.ended(begun, Step("", 256, tokens), ())
    cold = Step("", 256, 5_000)
    assert pace.share_s(cold) > 1.0  # nothing better is known
    for _ in range(5):
        pace.appended(Step("", 1, 512), 0.003)
        pace.appended(Step("", 1, 3), 0.002)
    assert 0.02 < pace.share_s(cold) < 0.05
    assert pace.share_s(Step("", 256, 512)) > 0.1  # it is not in chunks
