"""A user's next window, computed before they are in it."""

from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.no_memory import OUT_OF_MEMORY
from tests.profiles import examples
from tests.property.users import ask, record
from xgr_stream.config import CacheConfig, EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.types import CacheState, CatalogUpdate

MODEL = tiny_model()


def engine_of(max_events: int = 8, stride: int | None = 4, budget_bytes: int = 1 << 20, **cache: int) -> Engine:
    config = EngineConfig(window=WindowConfig(max_events, stride), cache=CacheConfig(budget_bytes, 4, **cache))
    return Engine.load(MODEL, tiny_catalog(), config=config)


def happen(engine: Engine, *items: int, user_id: str = "user") -> None:
    record(engine, user_id, [(f"item-{item}", None) for item in items])
    engine.warm([engine.history.view(user_id)])


def state(engine: Engine, user_id: str = "user") -> CacheState:
    engine.check_integrity()
    return ask(engine, (user_id, 3, 8))[0].cache


def test_a_request_right_behind_the_event_that_moves_the_window_computes_that_event_alone():
    engine = engine_of()
    happen(engine, *range(7))
    happen(engine, 7)
    before = engine.stats().tokens_appended
    record(engine, "user", [("item-9", None)])
    assert engine.pending_tokens(engine.history.view("user")) <= 5 * 3
    assert state(engine) is CacheState.APPENDED
    assert (
        engine.stats().tokens_appended - before <= 5 * 3
    )  # of 5 events in the new window, those since it was computed
    assert engine.cache.get("user").window_start == 4


def test_what_it_takes_counts_where_nothing_else_was_to_be_computed():
    """As behind a request that has brought the user up to date: what takes no time would be begun beside requests."""
    engine = engine_of()
    happen(engine, *range(4))
    record(engine, "user", [("item-7", None)])
    assert state(engine) is CacheState.APPENDED
    begun = perf_counter()
    report = engine.warm([engine.history.view("user")])
    took = perf_counter() - begun
    assert (report.users, report.tokens > 0) == (0, True)
    assert report.begun is not report.ended
    assert report.seconds > 0 < report.prepared_s
    assert report.prepared_s + report.seconds <= took
    again = engine.warm([engine.history.view("user")])
    assert (again.tokens, again.seconds) == (0, 0.0)


@examples(60)
@given(
    max_events=st.integers(1, 9),
    stride=st.none() | st.integers(1, 9),
    steps=st.lists(st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.booleans()), max_size=25),
    host_bytes=st.sampled_from((0, 1 << 14)),
)
def test_answers_are_those_of_a_prefill_and_nothing_is_left(max_events, stride, steps, host_bytes):
    stride = None if stride is None else min(stride, max_events)
    engine = engine_of(max_events, stride, 1 << 18, host_bytes=host_bytes)
    fresh = engine_of(max_events, stride, 1 << 18)
    for items, asks in steps:
        happen(engine, *items)
        happen(fresh, *items)
        engine.check_integrity()
        if asks:
            fresh.forget(["user"])
            (warm,), (cold,) = (ask(one, ("user", 5, 32)) for one in (engine, fresh))
            assert [item.item_id for item in warm.items] == [item.item_id for item in cold.items]
            assert [item.score for item in warm.items] == pytest.approx([item.score for item in cold.items], abs=1e-4)
    assert engine.stats().users_warm == bool(steps)
    engine.forget(["user"])
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.users_warm, stats.bytes_used) == (0, 0)


def test_users_whose_events_come_one_by_one_are_never_cold_again():
    engine = engine_of(16, 8)
    happen(engine, 0)
    for number in range(1, 60):
        record(engine, "user", [(f"item-{number % 31}", None)])
        assert state(engine) is not CacheState.COLD
        engine.warm([engine.history.view("user")])


def test_the_next_window_is_of_no_use_once_an_item_in_it_has_changed():
    engine = engine_of()
    happen(engine, *range(8))
    engine.update_catalog([CatalogUpdate("item-6", engine.catalog.sid("item-20"))], 1)
    merge = engine.begin_merge()
    merge.run()
    merge.finish()
    record(engine, "user", [("item-9", None)])
    assert state(engine) is CacheState.COLD


def test_no_next_window_where_the_users_own_would_make_room_for_it():
    budget = engine_of().cache.pool.bytes_per_page * 7  # one window of 8 events takes 6
    engine = engine_of(budget_bytes=budget)
    happen(engine, *range(7))
    happen(engine, 7)
    assert state(engine) is CacheState.WARM
    record(engine, "user", [("item-9", None)])
    assert state(engine) is CacheState.COLD


def test_a_user_who_is_forgotten_takes_their_next_window_along():
    engine = engine_of()
    happen(engine, *range(8))
    happen(engine, *range(8), user_id="other")
    engine.forget(["user"])
    assert len(engine.cache) == 1
    engine.check_integrity()
    engine.forget(["other"])
    assert engine.stats().bytes_used == 0


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_no_memory_for_a_next_window_is_no_fault_of_the_append(monkeypatch, error):
    engine = engine_of()
    happen(engine, *range(4))
    draft = engine.cache.draft

    def refuse(base, kv_tokens):
        if base is None:
            raise error
        return draft(base, kv_tokens)

    monkeypatch.setattr(engine.cache, "draft", refuse)
    happen(engine, *range(4, 8))
    assert state(engine) is CacheState.WARM
