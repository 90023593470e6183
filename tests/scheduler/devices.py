"""A device thread with an engine that computes nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from xgr_stream.config import EngineConfig
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.clock import ManualClock
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.types import RecommendRequest, UserEvent


class Gate:
    """Holds the engine inside `answer` until the test lets it go on; keeps what it was given."""

    def __init__(self, engine: NullEngine) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.batches: list[list[str]] = []
        engine.before_answer = self

    def __call__(self, requests: Sequence[tuple[RecommendRequest, HistoryView | None]]) -> None:
        self.batches.append([request.request_id for request, _ in requests])
        self.entered.set()
        assert self.go_on.wait(10)


class HeldReport(NamedTuple):
    """Of appends or a chunk that the device is done with while `computed` is set."""

    users: int
    tokens: int
    computed: threading.Event
    prepared_s: float = 0.0

    @property
    def seconds(self) -> float | None:
        return 1e-3 if self.computed.is_set() else None


class Histories:
    """Users of a test."""

    def __init__(self) -> None:
        self.history = HistoryStore()

    def view(self, user: str, events: int = 1) -> HistoryView:
        """The user's, after so many more events."""
        for _ in range(events):
            self.history.apply(UserEvent(user, "item-1"))
        view = self.history.view(user)
        assert view is not None
        return view


class Device(Histories):
    def __init__(self, engine: NullEngine | None = None, config: EngineConfig | None = None) -> None:
        super().__init__()
        self.engine = engine or NullEngine()
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.worker = DeviceWorker(self.engine, config or EngineConfig(), self.clock, self.metrics)

    def settle(self) -> None:
        """Until all that was put before has been done."""
        self.worker.call(lambda: None).result(10)
