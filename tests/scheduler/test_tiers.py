"""Events tell the engine who may ask soon, whatever becomes of their appends; metrics say what the tiers do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.property.users import append, record
from xgr_stream.config import CacheConfig, EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.errors import DeviceLost
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.gauges import IDLE_REPORT_S, REPORT_S
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.testing.null_engine import NullEngine, NullStats
from xgr_stream.types import CacheState, RecommendRequest, UserEvent


class Expecting(NullEngine):
    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(bytes_budget=1)
        self.error = error
        self.expected: list[str] = []

    def expect(self, views: Sequence[HistoryView]) -> None:
        if self.error is not None:
            raise self.error
        self.expected += [view.user_id for view in views]


def view_of(user_id: str) -> HistoryView:
    history = HistoryStore()
    history.apply(UserEvent(user_id, "item-1"))
    view = history.view(user_id)
    assert view is not None
    return view


def worker_of(engine: Engine | NullEngine, metrics: Metrics) -> DeviceWorker:
    worker = DeviceWorker(engine, EngineConfig(), SystemClock(), metrics)
    worker.start()
    return worker


def test_the_engine_hears_of_events_whose_appends_are_left_to_requests() -> None:
    engine, metrics = Expecting(), Metrics()
    engine.warm([view_of("somebody")])  # the cache is full
    worker = worker_of(engine, metrics)
    worker.want_appends([view_of("a"), view_of("b")])
    worker.call(lambda: None).result(10)
    assert worker.stop(5)
    assert engine.expected == ["a", "b"]
    assert not engine.is_resident("a")


@pytest.mark.parametrize("error", [ValueError("of no consequence"), DeviceLost("gone")])
def test_an_engine_that_can_not_bring_users_back_still_answers_or_says_why(error: Exception) -> None:
    engine, metrics = Expecting(error), Metrics()
    worker = worker_of(engine, metrics)
    worker.want_append(view_of("a"))
    response = worker.submit(RecommendRequest("r", "a"), view_of("a"), None).result(10)
    worker.stop(5)
    assert response.error == ("device_lost" if isinstance(error, DeviceLost) else None)


def test_gauges_follow_what_happens_while_nobody_asks_for_anything() -> None:
    """Copies end, files are written: the device thread may have nothing to do for hours then."""
    engine, metrics = NullEngine(), Metrics()
    worker = worker_of(engine, metrics)
    worker.call(lambda: None).result(10)
    time.sleep(3 * REPORT_S)
    stats = replace(engine.stats(), users_warm=17)
    engine.stats = lambda: stats  # type: ignore[method-assign]
    end = time.monotonic() + 20 * IDLE_REPORT_S
    while metrics.registry.get_sample_value("xgr_users_warm") != 17:
        assert time.monotonic() < end
        time.sleep(REPORT_S)
    assert worker.stop(5)


@pytest.mark.parametrize("error", [ValueError("of no consequence"), DeviceLost("gone")])
def test_figures_that_can_not_be_had_end_no_thread(error: Exception) -> None:
    engine, metrics = NullEngine(), Metrics()
    stats, asked = engine.stats, []

    def fails_at_first() -> NullStats:
        asked.append(None)
        if len(asked) == 1:
            raise error
        return stats()

    engine.stats = fails_at_first  # type: ignore[method-assign]
    worker = worker_of(engine, metrics)
    end = time.monotonic() + 20 * IDLE_REPORT_S
    while not asked:
        assert time.monotonic() < end
        time.sleep(REPORT_S)
    lost = isinstance(error, DeviceLost)
    response = worker.submit(RecommendRequest("r", "a"), view_of("a"), None).result(10)
    assert response.error == ("device_lost" if lost else None)
    assert worker.alive
    assert (worker.lost is not None) == lost
    worker.stop(5)


def test_what_the_tiers_do_is_in_the_metrics() -> None:
    cache = CacheConfig(1 << 20, 4, host_bytes=1 << 20)
    config = EngineConfig(window=WindowConfig(max_events=4), cache=cache)
    engine, metrics = Engine.load(tiny_model(), tiny_catalog(), config=config), Metrics()
    append(engine, "user", [("item-1", None)])
    engine.demote(["user"])
    record(engine, "user", [("item-2", None)])
    worker = DeviceWorker(engine, config, SystemClock(), metrics)
    worker.start()
    worker.want_append(engine.history.view("user"))
    while worker.queue_depths()["append"] or not worker.call(lambda: engine.is_resident("user")).result(10):
        pass
    view = engine.history.view("user")
    assert worker.submit(RecommendRequest("r", "user"), view, None).result(10).cache in (
        CacheState.WARM,
        CacheState.APPENDED,
    )
    value = metrics.registry.get_sample_value
    while not value("xgr_tier_moves_total", {"direction": "in"}):
        worker.call(lambda: None).result(10)
    assert worker.stop(5)
    assert value("xgr_tier_moves_total", {"direction": "out"}) == 1
    assert value("xgr_tier_moved_bytes_total", {"direction": "in"}) > 0
    assert value("xgr_tier_bytes", {"tier": "host", "kind": "budget"}) > 0
    assert value("xgr_tier_bytes", {"tier": "file", "kind": "budget"}) == 0
    assert value("xgr_tier_users", {"tier": "host"}) == 0
