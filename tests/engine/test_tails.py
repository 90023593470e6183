"""Tails that a request names itself: what its response says, and which are refused."""

import pytest

from tests.property.users import record
from xgr_stream.config import CacheConfig, EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.errors import InvalidRequest
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.types import MAX_TAIL_TOKENS, CacheState, RecommendRequest, RecommendResponse, Status

EVENTS = [("item-1", None), ("item-2", None)]


@pytest.fixture
def engine() -> Engine:
    return Engine.load(tiny_model(xgr={"tail": [5]}), tiny_catalog())


def ask(engine: Engine, tail: tuple[int, ...] | None, user_id: str = "user") -> RecommendResponse:
    (response,) = engine.answer([(RecommendRequest("r", user_id, 3, 8, tail=tail), engine.history.view(user_id))])
    return response


def test_the_response_says_that_a_tail_was_computed_and_how_the_user_was_found(engine):
    record(engine, "user", EVENTS)
    states = []
    for tail in ((6, 7), (6, 7), None, (5,), ()):
        response = ask(engine, tail)
        states.append((response.cache, response.tail_computed))
    assert states == [
        (CacheState.COLD, True),
        (CacheState.WARM, True),
        (CacheState.WARM, False),
        (CacheState.WARM, False),  # the checkpoint's own tail, which is cached
        (CacheState.WARM, True),
    ]
    engine.check_integrity()


def test_the_facade_takes_a_tail(engine):
    engine.append("user", ["item-1", "item-2"])
    other = Engine.load(tiny_model(xgr={"tail": [6, 7]}), tiny_catalog())
    other.append("user", ["item-1", "item-2"])
    asked, own = engine.recommend("user", k=5, tail=[6, 7]), other.recommend("user", k=5)
    assert [r.item_id for r in asked] == [r.item_id for r in own]
    assert [r.score for r in asked] == pytest.approx([r.score for r in own], abs=1e-4)
    assert asked != engine.recommend("user", k=5)


def test_an_unknown_user_needs_no_tail(engine):
    response = ask(engine, (6,), "nobody")
    assert (response.status, response.tail_computed) == (Status.UNKNOWN_USER, False)


def test_a_token_beyond_the_vocabulary_is_refused(engine):
    record(engine, "user", EVENTS)
    vocab_size = engine.model.config.vocab_size
    assert ask(engine, (vocab_size - 1,)).status is Status.OK
    response = ask(engine, (0, vocab_size))
    assert (response.status, response.error) == (Status.ERROR, "invalid_request")
    assert response.message == f"tail must hold token ids below {vocab_size}, the vocabulary, not {vocab_size}"
    with pytest.raises(InvalidRequest, match="tail must be None or a sequence of token ids"):
        engine.recommend("user", tail=["view"])


def test_a_tail_beyond_the_models_positions_is_refused_whatever_the_history():
    model = tiny_model(config={"max_position_embeddings": 64})
    engine = Engine.load(model, tiny_catalog(), config=EngineConfig(window=WindowConfig(max_events=19)))
    engine.append("user", [f"item-{n}" for n in range(19)])
    assert len(engine.recommend("user", tail=[6] * 5)) == 10
    for user in ("user", "nobody"):
        with pytest.raises(InvalidRequest, match=r"tail must hold at most 5 tokens on this engine, .*, not 6"):
            engine.recommend(user, tail=[6] * 6)


@pytest.mark.parametrize(("spare_pages", "longest"), [(1, 1), (2, 5), (20, MAX_TAIL_TOKENS)])
def test_a_tail_that_the_cache_has_no_room_for_beside_a_window_is_refused(spare_pages, longest):
    engine = small_engine(spare_pages)
    items = [f"item-{n}" for n in range(5)]  # 15 tokens: the last page lacks one
    engine.append("other", items)
    engine.append("user", items)
    for tail in ((), (6,), (6,) * longest):
        assert len(engine.recommend("user", tail=tail)) == 10
        engine.check_integrity()
    assert engine.is_resident("user")
    if longest < MAX_TAIL_TOKENS:
        with pytest.raises(InvalidRequest, match=f"tail must hold at most {longest} tokens on this engine"):
            engine.recommend("user", tail=(6,) * (longest + 1))


def test_a_cache_of_one_window_takes_the_checkpoints_own_tail_alone():
    engine = small_engine(spare_pages=0)
    engine.append("user", ["item-1"])
    for tail in ((), (6,)):
        with pytest.raises(InvalidRequest, match="tail must be the checkpoint's own"):
            engine.recommend("user", tail=tail)
    assert len(engine.recommend("user", tail=(5, 5, 5))) == 10


def small_engine(spare_pages: int) -> Engine:
    """Pages of 4 tokens: five events of three and the checkpoint's tail take five."""
    model = tiny_model(xgr={"tail": [5, 5, 5]})
    page_bytes = Engine.load(model, tiny_catalog()).cache.pool.bytes_per_page // 16
    cache = CacheConfig(budget_bytes=(5 + spare_pages) * page_bytes, page_size=4)
    return Engine.load(model, tiny_catalog(), config=EngineConfig(window=WindowConfig(max_events=5), cache=cache))


def test_a_failed_forward_of_a_tail_leaves_the_user_warm(engine, monkeypatch):
    engine.append("user", ["item-1"])

    def broken(*args: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine.model.decoder, "forward", broken)
    with pytest.raises(RuntimeError, match="device lost"):
        ask(engine, (6,))
    engine.check_integrity()
    monkeypatch.undo()
    response = ask(engine, None)
    assert (response.status, response.cache) == (Status.OK, CacheState.WARM)
