"""One batch of appends after the other: when the next one is prepared."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scheduler.devices import Histories
from xgr_stream.config import EngineConfig
from xgr_stream.history import HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.appends import AppendQueue
from xgr_stream.scheduler.choosing import Choice
from xgr_stream.scheduler.pace import Pace, Step
from xgr_stream.scheduler.prefill import Prefills
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.warming import Warming
from xgr_stream.scheduler.work import WorkQueue
from xgr_stream.testing.clock import ManualClock
from xgr_stream.testing.null_engine import NullEngine

TURN_S = 50e-6


class Report:
    """Of a batch that the device has done at `ends_at`."""

    def __init__(self, clock: ManualClock, tokens: int, prepared_s: float, begins_at: float, ends_at: float) -> None:
        self.users, self.tokens, self.prepared_s = 1, tokens, prepared_s
        self.ends_at = ends_at
        self._clock = clock
        self._took = ends_at - begins_at

    @property
    def seconds(self) -> float | None:
        return self._took if self._clock.now() >= self.ends_at else None


class TimedEngine(NullEngine):
    """Prepares a batch on the caller's time, and computes it behind the one before."""

    def __init__(self, clock: ManualClock, prepared_s: float, computed_s: float) -> None:
        super().__init__()
        self.prepared_s, self.computed_s = prepared_s, computed_s
        self.reports: list[Report] = []
        self.idle_s: list[float] = []
        """Of the device, before each batch."""
        self.begun_before_s: list[float] = []
        """How long before the batch ahead of it was done each was called for."""
        self._clock = clock

    def warm(self, views: Sequence[HistoryView]) -> Report:  # type: ignore[override]
        clock = self._clock
        free_at = self.reports[-1].ends_at if self.reports else clock.now()
        self.begun_before_s.append(free_at - clock.now())
        clock.advance(self.prepared_s)
        begins_at = max(free_at, clock.now())
        self.idle_s.append(begins_at - free_at)
        report = Report(clock, super().warm(views).tokens, self.prepared_s, begins_at, begins_at + self.computed_s)
        self.reports.append(report)
        return report


class Stage(Histories):
    """Appends without a thread: each turn looks at what is done, and begins what may be begun."""

    def __init__(self, prepared_s: float, computed_s: float) -> None:
        super().__init__()
        self.clock, metrics = ManualClock(), Metrics()
        self.engine = TimedEngine(self.clock, prepared_s, computed_s)
        config, versions, queue = EngineConfig(), Versions(self.engine), AppendQueue()
        self.pace = Pace(config, self.clock)
        choice = Choice(versions, WorkQueue(), queue, self.pace, self.clock, metrics)
        prefills = Prefills(versions, self.pace, self.clock, metrics, choice.engine_of)
        self.warming = Warming(versions, queue, prefills, self.pace, self.clock, metrics, lose=pytest.fail)

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.warming.learn()
            if self.warming.may_append:
                self.warming.append([self.view("u")])
            self.clock.advance(TURN_S)


@given(st.floats(1e-4, 5e-3), st.floats(1e-4, 5e-3))
def test_the_next_batch_is_prepared_while_the_one_before_ends(prepared_s: float, computed_s: float) -> None:
    """So that the device never waits for longer than preparing takes beyond computing, and a request, which comes at
    any time, for no more than the end of one batch and another."""
    stage = Stage(prepared_s, computed_s)
    stage.turns(400)
    settled = 2
    most_idle = max(0.0, prepared_s - computed_s) + 2 * TURN_S
    assert max(stage.engine.idle_s[settled:]) <= most_idle
    assert max(stage.engine.begun_before_s[settled:]) <= prepared_s + TURN_S


def test_beside_requests_and_when_nothing_is_known_the_one_before_is_waited_for() -> None:
    stage = Stage(prepared_s=1e-3, computed_s=2e-3)
    step = Step("null", 256, 0)
    stage.pace.begins(stage.clock.now(), step)
    stage.turns(400)
    assert len(stage.engine.reports) > 5
    assert max(stage.engine.begun_before_s) <= 0
    stage.pace.ended(stage.clock.now(), step, ())
    stage.turns(400)
    assert max(stage.engine.begun_before_s) > 0


def test_each_batch_counts_with_what_it_took_to_prepare_and_to_compute() -> None:
    """Also one that was prepared while the device was at another."""
    stage = Stage(prepared_s=1e-3, computed_s=2e-3)
    stage.turns(400)
    assert stage.pace.append_s(Step("null", 1, 3)) == pytest.approx(3e-3)
    assert stage.pace.busy_s(stage.clock.now()) <= 4e-3
