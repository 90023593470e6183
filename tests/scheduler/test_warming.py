"""One batch of appends after the other: when the next one is prepared, and what is learned of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scheduler.devices import Histories
from xgr_stream.config import EngineConfig
from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.appends import AppendQueue
from xgr_stream.scheduler.choosing import Choice
from xgr_stream.scheduler.clock import Clock, SystemClock
from xgr_stream.scheduler.pace import SAMPLE_S, Pace, Step
from xgr_stream.scheduler.prefill import Prefills
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.warming import Warming
from xgr_stream.scheduler.work import WorkQueue
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.clock import ManualClock
from xgr_stream.testing.null_engine import NullEngine

TURN_S = 50e-6


class Report:
    """Of a batch that the device has done at `ends_at`."""

    def __init__(self, clock: Clock, tokens: int, prepared_s: float, begins_at: float, ends_at: float) -> None:
        self.users, self.tokens, self.prepared_s = int(tokens > 0), tokens, prepared_s
        self.begins_at, self.ends_at = begins_at, ends_at
        self._clock = clock

    @property
    def seconds(self) -> float | None:
        return self.ends_at - self.begins_at if self._clock.now() >= self.ends_at else None


class TimedEngine(NullEngine):
    """Prepares a batch on the caller's time, and computes it behind the one before."""

    def __init__(
        self, clock: Clock, spend: Callable[[float], object], prepared_s: float, computed_s: Callable[[], float]
    ) -> None:
        """`spend`: lets so many seconds pass."""
        super().__init__()
        self.prepared_s, self.computed_s = prepared_s, computed_s
        self.reports: list[Report] = []
        self.idle_s: list[float] = []
        """Of the device, before each batch."""
        self.begun_before_s: list[float] = []
        """How long before the batch ahead of it was done each was called for."""
        self.most = 0
        """Batches that were not done when another one was called for."""
        self._clock = clock
        self._spend = spend

    def warm(self, views: Sequence[HistoryView]) -> Report:  # type: ignore[override]
        now = self._clock.now()
        free_at = max(now, self.reports[-1].ends_at) if self.reports else now
        self.most = max(self.most, sum(report.ends_at > now for report in self.reports[-4:]))
        self.begun_before_s.append(free_at - now)
        tokens = super().warm(views).tokens
        prepared_s = self.prepared_s if tokens else 0.0
        self._spend(prepared_s)
        begins_at = max(free_at, self._clock.now())
        self.idle_s.append(begins_at - free_at)
        ends_at = begins_at + (self.computed_s() if tokens else 0.0)
        self.reports.append(Report(self._clock, tokens, prepared_s, begins_at, ends_at))
        return self.reports[-1]


class Stage(Histories):
    """Appends without a thread: each turn looks at what is done, and begins what may be begun."""

    def __init__(self, prepared_s: float, computed_s: Callable[[], float]) -> None:
        super().__init__()
        self.clock, self.metrics = ManualClock(), Metrics()
        metrics = self.metrics
        self.engine = TimedEngine(self.clock, self.clock.advance, prepared_s, computed_s)
        config, versions, queue = EngineConfig(), Versions(self.engine), AppendQueue()
        self.pace = Pace(config, self.clock)
        choice = Choice(versions, WorkQueue(), queue, self.pace, self.clock, metrics)
        prefills = Prefills(versions, self.pace, self.clock, metrics, choice.engine_of)
        self.warming = Warming(versions, queue, prefills, self.pace, self.clock, metrics, lose=pytest.fail)

    def turns(self, count: int, events: int = 1) -> None:
        """So many, with so many new events for each batch."""
        for _ in range(count):
            self.warming.learn()
            if self.warming.may_append:
                self.warming.append([self.view("u", events)])
            self.clock.advance(TURN_S)

    def settle(self) -> None:
        while self.warming.under_way:
            self.clock.advance(TURN_S)
            self.warming.learn()


@given(st.floats(1e-4, 5e-3), st.floats(1e-4, 5e-3))
def test_the_next_batch_is_prepared_while_the_one_before_ends(prepared_s: float, computed_s: float) -> None:
    """So that the device never waits for longer than preparing takes beyond computing, and a request, which comes at
    any time, for no more than the end of one batch and another."""
    stage = Stage(prepared_s, lambda: computed_s)
    stage.turns(400)
    settled = 2
    most_idle = max(0.0, prepared_s - computed_s) + 2 * TURN_S
    assert max(stage.engine.idle_s[settled:]) <= most_idle
    assert max(stage.engine.begun_before_s[settled:]) <= prepared_s + TURN_S
    assert stage.engine.most == 1


def test_once_they_are_known_to_take_longer_the_next_are_as_late_as_they_should() -> None:
    """What was wrong is not carried on: each end is foreseen from the one before, which is known."""
    takes_ms = {"now": 2.0}
    stage = Stage(1e-3, lambda: takes_ms["now"] / 1e3)
    stage.turns(400)
    takes_ms["now"] = 9.0
    stage.turns(6_000)
    begun = len(stage.engine.reports)
    stage.turns(2_000)
    assert max(stage.engine.begun_before_s[begun:]) <= 1e-3 + TURN_S
    assert stage.engine.most == 1
    stage.settle()
    takes_ms["now"] = 2.0
    stage.turns(1)
    stage.settle()
    assert stage.pace.busy_s(stage.clock.now()) == 0


@given(st.integers(0, 1 << 32))
def test_each_end_is_foreseen_from_the_one_before_however_they_differ(seed: int) -> None:
    draw = random.Random(seed)
    stage = Stage(1e-3, lambda: draw.uniform(1.5e-3, 3e-3))
    stage.turns(2_000)
    assert stage.engine.most == 1
    assert max(stage.engine.begun_before_s[16:]) <= 1e-3 + 1.5e-3 + TURN_S


def test_beside_requests_the_one_before_is_waited_for() -> None:
    stage = Stage(1e-3, lambda: 2e-3)
    stage.turns(400)
    stage.settle()
    begun, step = len(stage.engine.reports), Step("null", 256, 0)
    stage.pace.begins(stage.clock.now(), step)
    stage.turns(400)
    assert len(stage.engine.reports) > begun + 5
    assert max(stage.engine.begun_before_s[begun:]) <= 0
    # One is under way, which the batch has held up: how far it is nobody knows.
    begun = len(stage.engine.reports)
    stage.engine.reports[-1].ends_at += 1e-3
    stage.pace.ended(stage.clock.now(), step, ())
    stage.turns(1)
    assert len(stage.engine.reports) == begun
    stage.turns(400)
    assert max(stage.engine.begun_before_s[begun + 1 :]) > 0


def test_before_anything_is_known_the_one_before_is_waited_for() -> None:
    stage = Stage(1e-3, lambda: 2e-3)
    stage.turns(30)
    assert stage.engine.begun_before_s == [0.0]
    step = Step("null", 256, 0)
    stage.pace.begins(stage.clock.now(), step)
    stage.pace.ended(stage.clock.now(), step, ())
    stage.turns(1)
    assert stage.engine.begun_before_s == [0.0]


def test_each_batch_counts_once_with_what_it_took_to_prepare_and_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was prepared while the device was at another."""
    takes = iter(range(1, 1_000))
    stage = Stage(1e-3, lambda: (2.0 + next(takes) / 1_000) / 1e3)
    learned: list[float] = []
    appended = stage.pace.appended
    monkeypatch.setattr(stage.pace, "appended", lambda *a, **k: (learned.append(a[1]), appended(*a, **k)))
    stage.turns(400)
    stage.settle()
    assert learned == pytest.approx([(3.0 + number / 1_000) / 1e3 for number in range(1, len(learned) + 1)])
    assert len(learned) == len(stage.engine.reports) > 5
    assert stage.pace.append_s(Step("null", 1, 3)) == pytest.approx(3e-3, rel=0.02)
    assert stage.pace.busy_s(stage.clock.now()) <= TURN_S


class Busy:
    """A stage whose batches take longer beside requests."""

    def __init__(self, *, alone: int) -> None:
        """`alone`: turns before the first requests come."""
        self.alone_s, self.beside_s = 2e-3, 7e-3
        self._beside = False
        self.stage = Stage(1e-3, lambda: self.beside_s if self._beside else self.alone_s)
        self.stage.turns(alone)

    def requests(self, seconds: float) -> None:
        """One after the other, none longer than a batch, for so long or until they are to wait."""
        step, stage = Step("null", 256, 0), self.stage
        self._beside = True
        ends_at = stage.clock.now() + seconds
        while stage.clock.now() < ends_at and not stage.warming.alone:
            stage.pace.begins(stage.clock.now(), step)
            stage.turns(20)
            stage.pace.ended(stage.clock.now(), step, ())
        self._beside = False

    @property
    def learned_ms(self) -> float:
        return self.stage.pace.append_s(Step("null", 1, 3)) * 1e3


def test_what_a_batch_takes_beside_requests_is_not_what_it_takes() -> None:
    """Requests go first on the device; batches are not to become shorter or longer for it."""
    busy = Busy(alone=400)
    for _ in range(20):
        busy.requests(0.3)
        assert busy.learned_ms == pytest.approx(3.0, rel=0.02)
        busy.stage.turns(300)


def test_until_enough_were_by_themselves_those_beside_requests_count() -> None:
    busy = Busy(alone=0)
    busy.requests(0.3)
    assert busy.learned_ms == pytest.approx(8.0, rel=0.02)
    busy.stage.turns(400)
    assert busy.learned_ms == pytest.approx(3.0, rel=0.02)


def test_that_batches_take_longer_by_themselves_is_learned_after_requests_too() -> None:
    busy = Busy(alone=400)
    busy.requests(0.3)
    busy.alone_s = 5e-3
    busy.stage.turns(4_000)
    assert busy.learned_ms == pytest.approx(6.0, rel=0.02)


def test_a_batch_that_requests_came_and_went_beside_is_none_by_itself() -> None:
    stage = Stage(1e-3, lambda: 2e-3)
    stage.turns(400)
    stage.settle()
    known_s = stage.pace.append_s(Step("null", 1, 3))
    for _ in range(20):
        stage.turns(1)
        step = Step("null", 256, 0)
        stage.pace.begins(stage.clock.now(), step)
        stage.engine.reports[-1].ends_at += 5e-3
        stage.pace.ended(stage.clock.now(), step, ())
        stage.settle()
    assert stage.pace.append_s(Step("null", 1, 3)) == pytest.approx(known_s)


def test_a_batch_behind_requests_that_are_under_way_is_by_itself() -> None:
    """The device begins with it when it is done with them."""
    stage = Stage(1e-3, lambda: 2e-3)
    step = Step("null", 256, 0)
    for _ in range(20):
        stage.pace.begins(stage.clock.now(), step)
        stage.turns(1)
        stage.pace.ended(stage.clock.now(), step, ())
        stage.settle()
    assert not stage.pace.needs_sample("null")
    assert stage.pace.append_s(Step("null", 1, 3)) == pytest.approx(3e-3, rel=0.02)


def test_where_requests_never_end_they_wait_for_a_batch_now_and_then() -> None:
    busy = Busy(alone=400)
    stage = busy.stage
    busy.alone_s = busy.beside_s = 5e-3
    for _ in range(20):
        began_at = stage.clock.now()
        busy.requests(2 * SAMPLE_S)
        assert SAMPLE_S < stage.clock.now() - began_at < SAMPLE_S + 0.05
        stage.settle()
        assert not stage.warming.alone
    assert busy.learned_ms == pytest.approx(6.0, rel=0.02)


def test_another_versions_batches_by_themselves_say_more_than_its_own_beside_requests() -> None:
    busy = Busy(alone=400)
    busy.stage.pace.appended(Step("challenger", 1, 3), 8e-3, beside=True)
    assert busy.stage.pace.append_s(Step("challenger", 1, 3)) == pytest.approx(3e-3, rel=0.02)
    for _ in range(10):
        busy.stage.pace.appended(Step("challenger", 1, 3), 4e-3)
    assert busy.stage.pace.append_s(Step("challenger", 1, 3)) == pytest.approx(4e-3, rel=0.02)
    assert busy.learned_ms == pytest.approx(3.0, rel=0.02)


def test_long_preparing_takes_no_time_off_what_the_device_has() -> None:
    stage = Stage(1e-3, lambda: 2e-3)
    stage.turns(400)
    now, step = stage.clock.now(), Step("null", 256, 0)
    for _ in range(5):
        stage.pace.ended(now - 0.02, step, ())
    stage.pace.begins(now, step)
    busy_s = stage.pace.busy_s(now)
    stage.pace.appending(now, Step("null", 1, 3), prepared_s=1.0, ahead=True)
    assert 0 < busy_s <= stage.pace.busy_s(now) <= busy_s + 2e-3 + TURN_S


def test_one_that_took_long_to_prepare_is_no_shorter_for_it() -> None:
    """As when a graph was captured."""
    stage = Stage(1e-3, lambda: 2e-3)
    stage.turns(400)
    stage.settle()
    begun = len(stage.engine.reports)
    stage.engine.prepared_s = 20e-3
    stage.turns(1)
    stage.engine.prepared_s = 1e-3
    stage.turns(400)
    assert max(stage.engine.begun_before_s[begun:]) <= 1e-3 + TURN_S


def test_two_that_are_done_at_once_are_learned_at_once() -> None:
    stage = Stage(1e-3, lambda: 2e-3)
    stage.turns(400)
    begun = len(stage.engine.reports)
    while len(stage.engine.reports) == begun:
        stage.turns(1)
    stage.clock.advance(1.0)
    stage.warming.learn()
    assert not stage.warming.under_way


def test_users_who_lack_nothing_take_the_device_no_time() -> None:
    stage = Stage(1e-4, lambda: 2e-3)
    stage.turns(400)
    stage.settle()
    counted = stage.metrics.registry.get_sample_value("xgr_append_batches_total")
    for _ in range(50):
        stage.turns(1, events=0)
        assert stage.pace.busy_s(stage.clock.now()) <= TURN_S
    assert stage.metrics.registry.get_sample_value("xgr_append_batches_total") == counted > 0
    begun = len(stage.engine.reports)
    stage.turns(400)
    assert stage.engine.begun_before_s[begun + 1] > 0  # what preparing takes is still known


def test_what_is_given_up_with_the_device_is_not_waited_for() -> None:
    stage = Stage(1e-3, lambda: 2e-3)
    stage.turns(1)
    assert stage.warming.under_way
    stage.warming.abandon()
    assert not stage.warming.under_way


def test_a_worker_prepares_one_batch_ahead_and_no_more() -> None:
    """On the clock, a user in each batch."""
    histories, clock = Histories(), SystemClock()
    engine = TimedEngine(clock, time.sleep, 2e-3, lambda: 6e-3)
    worker = DeviceWorker(engine, EngineConfig(append_piece_ms=0.001), clock, Metrics())
    worker.start()
    views = [histories.view(f"user-{number}") for number in range(60)]
    for some in (views[:1], views[1:]):  # until something is known, all go together
        worker.want_appends(some)
        worker.call(lambda: None).result(10)
        while worker.queue_depths()["append"]:
            time.sleep(0.01)
        time.sleep(0.05)
    assert worker.stop(5)
    assert sum(report.tokens for report in engine.reports) == 3 * len(views)
    early = [seconds > 0 for seconds in engine.begun_before_s]
    assert len(early) > 20
    assert sum(early) > len(early) / 2
    assert engine.most == 1
