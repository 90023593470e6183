"""A long prefill in chunks, between which the engine does whatever else it is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.users import ask, record
from xgr_stream.catalog import Catalog
from xgr_stream.config import CacheConfig, EngineConfig, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.engine.lanes import Lane
from xgr_stream.engine.prefixes import PrefixBuilder
from xgr_stream.errors import EngineError
from xgr_stream.testing import tiny_catalog, tiny_items, tiny_model
from xgr_stream.types import CacheState, CatalogUpdate

MODEL = tiny_model()


def engine_of(budget_bytes: int = 1 << 20, **options: int) -> Engine:
    config = EngineConfig(window=WindowConfig(40, 20), cache=CacheConfig(budget_bytes, 4), **options)
    return Engine.load(MODEL, tiny_catalog(), config=config)


def happen(engine: Engine, user_id: str, events: int, first: int = 0) -> None:
    record(engine, user_id, [(f"item-{(first + 7 * number) % 31}", None) for number in range(events)])


def answer(engine: Engine, user_id: str):
    (response,) = ask(engine, (user_id, 5, 32))
    return response


def assert_same(engine: Engine, user_id: str) -> None:
    """As computed anew."""
    found = answer(engine, user_id)
    engine.forget([user_id])
    anew = answer(engine, user_id)
    assert [item.item_id for item in found.items] == [item.item_id for item in anew.items]
    assert [item.score for item in found.items] == pytest.approx([item.score for item in anew.items], abs=1e-4)


@examples(60)
@given(
    events=st.integers(1, 90),
    chunk=st.integers(1, 150),
    most=st.integers(1, 64),
    others=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(("event", "ask", "warm", "forget"))), max_size=30),
)
def test_whatever_happens_between_chunks(events: int, chunk: int, most: int, others: list[tuple[int, str]]) -> None:
    engine = engine_of(max_batch_tokens=most)
    happen(engine, "long", events)
    for user in range(4):
        happen(engine, f"user-{user}", 2 + user, first=user)
    view, rest = engine.history.view("long"), iter(others)
    assert view is not None
    tokens = engine.pending_tokens(view)
    reports = []
    for report in engine.prefilling(view, chunk):
        reports.append(report)
        assert 0 < report.tokens <= min(chunk, most)
        user, what = next(rest, (0, ""))
        if what == "event":
            happen(engine, f"user-{user}", 1)
        elif what == "ask":
            assert answer(engine, f"user-{user}").items
        elif what == "warm":
            engine.warm([engine.history.view(f"user-{user}")])
        elif what == "forget":
            engine.forget([f"user-{user}"])
    assert [report.users for report in reports] == [0] * (len(reports) - 1) + [1]
    assert sum(report.tokens for report in reports) == tokens
    engine.check_integrity()
    assert answer(engine, "long").cache is CacheState.WARM
    assert_same(engine, "long")
    engine.forget(["long", *(f"user-{user}" for user in range(4))])
    engine.check_integrity()
    assert engine.stats().bytes_used == 0


def test_who_has_something_to_go_on_from_is_not_prefilled() -> None:
    engine = engine_of()
    happen(engine, "user", 3)
    engine.warm([engine.history.view("user")])
    happen(engine, "user", 9)
    assert list(engine.prefilling(engine.history.view("user"), 4)) == []


def test_what_is_given_up_leaves_nothing() -> None:
    engine = engine_of()
    happen(engine, "user", 30)
    chunks = engine.prefilling(engine.history.view("user"), 16)
    next(chunks)
    pool = engine.cache.pool
    assert pool.num_free < pool.num_pages
    chunks.close()
    engine.check_integrity()
    assert pool.num_free == pool.num_pages


@pytest.mark.parametrize("what", ["_append", "_publish"])
@pytest.mark.parametrize("chunked", [True, False])
def test_what_fails_before_or_behind_the_forwards_leaves_nothing(monkeypatch, what: str, chunked: bool) -> None:
    engine = engine_of()
    users = ["user"] if chunked else ["user", "other"]
    for user_id in users:
        happen(engine, user_id, 30)
    views = [engine.history.view(user_id) for user_id in users]
    real, turns = getattr(PrefixBuilder, what), iter(users)

    def fails_for_the_last(*args: object) -> object:
        if next(turns) == users[-1]:
            raise MemoryError
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(PrefixBuilder, what, fails_for_the_last)
        with pytest.raises(MemoryError):
            list(engine.prefilling(views[0], 16)) if chunked else engine.warm(views)
    engine.check_integrity()
    assert engine.stats().bytes_used == 0
    assert_same(engine, "user")


def test_a_newer_prefix_stays() -> None:
    """Another request of the user came in between."""
    engine = engine_of()
    happen(engine, "user", 30)
    chunks = engine.prefilling(engine.history.view("user"), 16)
    next(chunks)
    happen(engine, "user", 1)
    assert answer(engine, "user").event_count == 31
    *_, last = chunks
    assert last.users == 1
    engine.check_integrity()
    assert engine.cache.get("user").event_count == 31
    assert_same(engine, "user")


def test_who_is_forgotten_meanwhile_does_not_come_back() -> None:
    engine = engine_of()
    for user_id in ("user", "other"):
        happen(engine, user_id, 30)
    chunks, others = (engine.prefilling(engine.history.view(user_id), 16) for user_id in ("user", "other"))
    for _ in range(2):
        next(chunks)
        next(others)
    engine.forget(["user"])
    again = engine.prefilling(engine.history.view("user"), 16)
    next(again)
    assert list(chunks) == []
    again.close()
    assert not engine.is_resident("user")
    assert list(others)[-1].users == 1
    engine.forget(["other"])
    engine.check_integrity()
    assert engine.stats().bytes_used == 0
    assert_same(engine, "user")


def test_a_catalog_that_changed_meanwhile() -> None:
    """An item in the context has another semantic ID: what was computed is not used, and the rest is not computed."""
    engine = engine_of()
    happen(engine, "user", 30)
    chunks = engine.prefilling(engine.history.view("user"), 16)
    next(chunks)
    codes = tuple(int(code) for code in engine.catalog.sids[engine.catalog.row("item-0")])
    engine.apply_updates([CatalogUpdate("item-0", sid=(*codes[:-1], (codes[-1] + 1) % engine.codes[-1]))])
    whole = engine.pending_tokens(engine.history.view("user"))
    reports = list(chunks)
    assert (reports[-1].users, sum(report.tokens for report in reports)) == (1, whole)
    engine.check_integrity()
    assert answer(engine, "user").cache is CacheState.WARM
    assert_same(engine, "user")


@pytest.mark.parametrize("same_tokens", [True, False])
def test_another_catalog_is_used_meanwhile(same_tokens: bool) -> None:
    """What was computed is used if the context has the same tokens; otherwise it begins again at once, in chunks."""
    engine = engine_of()
    happen(engine, "user", 30)
    view = engine.history.view("user")
    chunks = engine.prefilling(view, 16)
    done = next(chunks).tokens
    columns = tiny_items()
    whole = engine.pending_tokens(view)
    seen = {engine.history.item_names[item] for item in view.items.tolist()}
    unseen = columns["item_id"].index(next(item for item in columns["item_id"] if item not in seen))
    changed = unseen if same_tokens else columns["item_id"].index("item-0")
    columns["sid"][changed] = [(code + 1) % 8 for code in columns["sid"][changed]]
    engine.use_catalog(Catalog.from_table(columns, codes=(8, 8, 8)))
    reports = list(chunks)
    assert sum(report.tokens for report in reports) == (whole - done if same_tokens else whole)
    assert max(report.tokens for report in reports) <= 16
    assert [report.users for report in reports] == [0] * (len(reports) - 1) + [1]
    engine.check_integrity()
    assert answer(engine, "user").cache is CacheState.WARM
    assert_same(engine, "user")


def test_no_memory_for_it() -> None:
    engine = engine_of()
    happen(engine, "user", 30)
    happen(engine, "other", 40)
    engine.warm([engine.history.view("other")])
    small = engine_of(budget_bytes=engine.cache.pool.bytes_per_page * 32)
    happen(small, "user", 30)
    happen(small, "other", 30)
    small.warm([small.history.view("other")])
    prefix = small.cache.get("other")
    with small.cache.pinned([prefix]), pytest.raises(EngineError):
        next(small.prefilling(small.history.view("user"), 16))
    small.check_integrity()


def test_a_request_follows_a_prefill_that_began_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when appends share the decodes' lane since. Lanes wait on CUDA alone, so what they ask for is noted."""
    engine = engine_of()
    happen(engine, "user", 30)
    work, follow, keep = engine._work, Lane.follow, Lane.keep
    own, followed, kept = work.append_lane, [], []
    monkeypatch.setattr(Lane, "follow", lambda lane, *to: followed.append((lane, to[0])) or follow(lane, *to))
    monkeypatch.setattr(Lane, "keep", lambda lane, *what: kept.append(lane) or keep(lane, *what))
    chunks = engine.prefilling(engine.history.view("user"), 16)
    next(chunks)
    engine.use_streams(False)
    list(chunks)
    assert set(kept) == {own}
    followed.clear()
    assert answer(engine, "user").cache is CacheState.WARM
    assert (work.decode_lane, own) in followed
