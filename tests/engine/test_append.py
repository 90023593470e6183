"""Appends of the sizes that graphs are captured in: what is behind the users and the tokens changes nothing."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
import torch

from tests.property.users import record
from xgr_stream.config import CacheConfig, EngineConfig
from xgr_stream.engine import Engine, Switches
from xgr_stream.engine.append import GRAPH_TOKENS, LARGE_SHAPES, Appender
from xgr_stream.engine.lanes import Lane
from xgr_stream.engine.preparation import prepare_appends
from xgr_stream.engine.shapes import AppendShape
from xgr_stream.testing import tiny_catalog, tiny_model

MODEL = tiny_model()
USERS = [f"user-{number}" for number in range(5)]


def warmed(max_batch_tokens: int) -> Engine:
    """Of users who have come to have histories of different lengths, in steps."""
    random = np.random.default_rng(0)
    config = EngineConfig(cache=CacheConfig(1 << 20, 4), max_batch_tokens=max_batch_tokens)
    engine = Engine.load(MODEL, tiny_catalog(), config=config)
    for _ in range(4):
        for user_id in USERS:
            items = random.integers(0, 30, random.integers(0, 4))
            record(engine, user_id, [(f"item-{item}", None) for item in items])
        engine.warm([view for user_id in USERS if (view := engine.history.view(user_id)) is not None])
    engine.check_integrity()
    return engine


def test_a_step_of_several_forwards_begins_with_the_first(monkeypatch):
    engine, ends = warmed(7), []
    forward = Appender._forward
    monkeypatch.setattr(Appender, "_forward", lambda *a: (forward(*a), ends.append(perf_counter())))
    for user_id in USERS:
        record(engine, user_id, [("item-1", None)])
    report = engine.warm([engine.history.view(user_id) for user_id in USERS])
    assert report.begun.made_at < ends[0] < ends[1] <= ends[-1] < report.ended.made_at


@pytest.mark.parametrize("max_batch_tokens", [7, 64])  # in several forwards each, and in one
def test_padding_changes_nothing(max_batch_tokens, monkeypatch):
    exact = warmed(max_batch_tokens)
    shape_of = Appender._shape

    def captured(self, pieces):
        shape = shape_of(self, pieces)
        return AppendShape.bucket(shape.users, shape.tokens, shape.page_columns)

    monkeypatch.setattr(Appender, "_shape", captured)
    padded = warmed(max_batch_tokens)
    unread = exact.cache.unread_slot
    torch.testing.assert_close(padded.cache.hidden[:unread], exact.cache.hidden[:unread])
    torch.testing.assert_close(padded.cache.pool.k, exact.cache.pool.k)
    torch.testing.assert_close(padded.cache.pool.v, exact.cache.pool.v)


def test_few_shapes_without_a_graph_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has pinned memory. Those with a graph, which reads at fixed addresses, are never dropped."""
    appender = Engine.load(MODEL, tiny_catalog())._work.appender
    monkeypatch.setattr(appender, "_cuda", True)
    captured = [AppendShape.bucket(1, tokens, 4) for tokens in (1, 100, GRAPH_TOKENS)]
    large = [AppendShape.bucket(users, 3 * GRAPH_TOKENS, 4) for users in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]
    assert len({*captured, *large}) == len(captured) + len(large) > LARGE_SHAPES + len(captured)
    kept = [appender._staging_for(shape) for shape in captured]
    for shape in large:
        assert appender._staging_for(shape) is appender._staging_for(shape)
    assert list(appender._staging) == [*captured, *large[-LARGE_SHAPES:]]
    assert [appender._staging_for(shape) for shape in captured] == kept


def test_who_stops_preparing_appends_waits_for_what_was_begun() -> None:
    engine = Engine.load(MODEL, tiny_catalog())
    work, cache, log = engine._work, engine.cache, []
    abandon, mark = cache.abandon, Lane.mark
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lane, "mark", lambda lane: log.append(lane) or mark(lane))
        patch.setattr(cache, "abandon", lambda draft: log.append("abandon") or abandon(draft))
        steps = prepare_appends(work, cache, engine.model.tokens, engine.config, engine.window.max_events)
        next(steps)
        log.clear()
        steps.close()
    assert log == [work.append_lane, work.decode_lane, "abandon"]
    engine.check_integrity()


def test_appends_are_on_a_lane_of_their_own_or_on_the_decodes() -> None:
    engine = Engine.load(MODEL, tiny_catalog())
    one = Engine(engine.model, engine.catalog, config=engine.config, switches=Switches(streams=False))
    for work in (engine._work, one._work):
        own = work._beside.lane
        assert own is not work.decode_lane
        assert {*work._lanes()} == {own, work.decode_lane}
        assert work.append_lane is (own if work is engine._work else work.decode_lane)
        assert work.request_appender.lane is work.decode_lane
    work = engine._work
    for streams, lane in ((False, work.decode_lane), (True, work._beside.lane)):
        waited: list[Lane] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Lane, "reap", lambda lane, leave=None, waited=waited: waited.append(lane) if leave == 0 else None
            )
            engine.use_streams(streams)
        assert {*waited} == {work.decode_lane, work._beside.lane}  # for what is under way
        assert work.append_lane is work.appender.lane is lane
