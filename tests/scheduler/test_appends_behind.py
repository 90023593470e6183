"""Appends that go behind the requests that the device has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from tests.scheduler.devices import Device, HeldReport
from xgr_stream.history import HistoryView
from xgr_stream.scheduler.pace import Step
from xgr_stream.scheduler.policy import Budget
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.types import RecommendRequest, RecommendResponse


class HeldEngine(NullEngine):
    """Is done with batches of requests, and with appends, once it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded, self.appended = threading.Event(), threading.Event()
        self.warmed: list[str] = []
        self.begun = 0
        """Batches of requests."""

    def warm(self, views: Sequence[HistoryView]) -> HeldReport:  # type: ignore[override]
        self.warmed += [view.user_id for view in views]
        return HeldReport(1, super().warm(views).tokens, self.appended, prepared_s=1e-4)

    def begin(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> HeldAnswers:  # type: ignore[override]
        self.begun += 1
        return HeldAnswers(self.decoded, super().begin(requests).finish())


@dataclass(frozen=True, slots=True)
class HeldAnswers:
    ended: threading.Event
    responses: list[RecommendResponse]

    def done(self) -> bool:
        return self.ended.is_set()

    def finish(self) -> list[RecommendResponse]:
        assert self.ended.wait(10)
        return self.responses


class BusyDevice(Device):
    """A worker whose device is at a request while a user's events wait: beside another's, or (`together`) none."""

    def __init__(self, *, together: bool = False, decode_s: float = 0.0, append_s: float = 0.0) -> None:
        """`decode_s`, `append_s`: that a batch of them is known to take; 0: nothing is known."""
        self.held = HeldEngine()
        super().__init__(self.held)
        pace = self.worker._pace
        for _ in range(5 if decode_s else 0):
            began_at = self.clock.now()
            self.clock.advance(decode_s)
            pace.ended(began_at, Step(self.held.version, 50, 0), ())
            pace.appended(Step(self.held.version, 1, 3), append_s)
        if not together:
            self.worker.start()
            self.worker.want_append(self.view("first"))
            self.settle()
        self.promise = self.worker.submit(RecommendRequest("r", "asker", 1), None, None)
        if not together:
            self.settle()
        self.worker.want_append(self.view("second"))
        if together:
            self.worker.start()
        self.settle()

    def is_at(self, *users: str) -> bool:
        """Whether these have been appended to in the end, before the request was answered."""
        until = time.monotonic() + 10
        while self.held.warmed != [*users] and time.monotonic() < until:
            time.sleep(1e-3)
        return self.held.warmed == [*users] and not self.promise.done()

    def end(self) -> None:
        self.held.decoded.set()
        assert self.promise.result(10).request_id == "r"
        self.held.appended.set()
        assert self.worker.stop(5)


def test_appends_go_behind_the_requests_that_the_device_has_without_waiting_for_their_end() -> None:
    """Or the device would be idle until they are prepared. Nothing comes that would wake the thread."""
    device = BusyDevice()
    assert device.held.warmed == ["first"]
    device.held.appended.set()
    assert device.is_at("first", "second")
    device.end()


def test_appends_that_came_with_the_requests_go_behind_them() -> None:
    device = BusyDevice(together=True)
    assert device.is_at("second")
    device.end()


def test_appends_that_take_the_device_nothing_keep_none_behind_them_waiting() -> None:
    """As of users who are up to date by now."""
    device = BusyDevice()
    device.worker._pace.budget_for = partial(_one_token, device.worker._pace.budget_for)  # type: ignore[method-assign]
    device.worker.want_appends([device.view(f"user-{number}") for number in range(4)])
    device.settle()
    device.held.appended.set()
    assert device.is_at("first", "second", *[f"user-{number}" for number in range(4)])
    device.end()


def _one_token(budget_for: Callable[..., Budget], *arguments: Any, **options: Any) -> Budget:
    return replace(budget_for(*arguments, **options), append_tokens=1)


def test_requests_do_not_wait_for_appends_behind_those_that_the_device_has() -> None:
    """They go beside these, so the next batch is prepared while the one before ends."""
    device = BusyDevice(together=True, decode_s=6e-3, append_s=4e-3)
    assert device.is_at("second")
    pace, now = device.worker._pace, device.clock.now()
    assert pace.busy_s(now) > pace.decoding_s(now) + 1e-3 > 6e-3
    other = device.worker.submit(RecommendRequest("other", "asker", 1), None, None)
    device.settle()
    assert device.held.begun == 1
    device.clock.advance(pace.decoding_s(now) - pace.lead_s + 1e-6)
    device.settle()
    device.settle()
    assert device.held.begun == 2
    device.end()
    assert other.done()
    assert pace.decoding_s(device.clock.now()) == 0


def test_appends_that_the_policy_leaves_alone_are_not_looked_at_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = BusyDevice()
    looks = 0

    def none(*arguments: object, **options: object) -> tuple[list[object], list[object]]:
        nonlocal looks
        looks += bool(options["appends"])
        return [], []

    monkeypatch.setattr(device.worker._choice, "next", none)
    device.held.appended.set()
    until = time.monotonic() + 10
    while not looks and time.monotonic() < until:
        time.sleep(1e-3)
    time.sleep(0.1)
    assert looks == 1
    monkeypatch.undo()
    device.end()
