"""Marks and lanes with a stream that is none: what they ask of CUDA, and what they spare it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xgr_stream.engine.lanes import Lane, Mark
from xgr_stream.engine.staging import Staging


class Event:
    """In place of CUDA's: counts what it is asked."""

    made = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        Event.made += 1
        self.passed = False
        self.asked = 0

    def record(self, stream: object) -> None:
        self.passed = False

    def query(self) -> bool:
        self.asked += 1
        return self.passed

    def synchronize(self) -> None:
        self.asked += 1
        self.passed = True


class Context:
    """In place of what makes a stream the current one."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def __enter__(self) -> None:
        self.steps.append("entered")

    def __exit__(self, *error: object) -> None:
        self.steps.append("left")


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    context = Context()
    monkeypatch.setattr(Event, "made", 0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: object())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: context)
    return context


@pytest.fixture
def lane(context: Context) -> Lane:
    return Lane(torch.device("cuda"))


def passed(mark: Mark) -> Event:
    mark.event.passed = True
    return mark.event


def test_a_mark_that_is_done_is_not_asked_for_again(lane):
    mark = lane.mark()
    assert not mark.done()
    event = passed(mark)
    assert mark.done()
    mark.wait()
    assert mark.done()
    assert event.asked == 2

    mark = lane.mark()
    mark.wait()
    assert mark.done()
    assert mark.event.asked == 1


def test_an_event_is_another_marks_once_nobody_has_its_mark(lane):
    first, second = lane.mark(), lane.mark()
    event = first.event
    assert first.event is not second.event
    first.wait()
    first = None
    third = lane.mark()
    assert third.event is event
    assert not third.done()
    assert Event.made == 2


def test_from_a_mark_to_itself_is_no_time(lane):
    mark = lane.mark()
    assert mark.ms_since(mark) == 0.0


def test_what_work_holds_is_released_by_the_first_reap_after_it(lane):
    released: list[str] = []
    mark = lane.mark()
    lane.keep(mark, ["user"], lambda: released.append("user"))
    lane.reap()
    assert (released, lane.num_in_flight) == ([], 1)
    passed(mark)
    lane.reap()
    assert (released, lane.num_in_flight) == (["user"], 0)


def test_without_a_stream_it_is_released_at_once():
    released: list[str] = []
    lane = Lane(torch.device("cpu"))
    lane.keep(lane.mark(), ["user"], lambda: released.append("user"))
    assert (released, lane.num_in_flight) == (["user"], 0)


def test_a_lane_is_entered_once_and_left_once_also_by_an_exception(lane, context):
    with lane.current():
        with pytest.raises(ValueError, match="half-way"), lane.current():
            raise ValueError("half-way")
        assert context.steps == ["entered"]
    assert context.steps == ["entered", "left"]
    with pytest.raises(ValueError, match="half-way"), lane.current():
        raise ValueError("half-way")
    assert context.steps == ["entered", "left"] * 2


def test_staging_is_written_to_again_once_it_was_read(lane):
    staging = Staging({"numbers": (2,)}, torch.device("cpu"))
    mark = lane.mark()
    staging.send(lambda arrays: np.copyto(arrays["numbers"], [1, 2]))
    assert staging.tensors["numbers"].tolist() == [1, 2]
    staging.read_by(mark)
    assert not mark.event.passed
    staging.send(lambda arrays: arrays["numbers"].__setitem__(0, 3))
    assert mark.event.passed
    assert staging.tensors["numbers"].tolist() == [3, 0]
