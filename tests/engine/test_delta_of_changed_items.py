"""Items that move or get other tags, from the update that says so until a merge has taken them in."""

from __future__ import annotations

import pytest

from tests.engine.deltas import Log, as_made_anew, by_id, merged, same, served, sid_of
from tests.property.users import ask
from xgr_stream.catalog.catalog import DELTA_ITEMS
from xgr_stream.config import EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.types import CacheState, CatalogUpdate


def test_an_item_with_other_tags_is_in_the_next_answer_and_no_prefix_is_computed_anew(engine: Engine, log: Log) -> None:
    before = served(engine)
    update = CatalogUpdate("item-1", sid_of(engine, "item-1"), ("sale",))  # of the user's history
    old_tags = engine.catalog.tags.of_row(engine.catalog.rows(["item-1"]).item())
    assert old_tags
    log.apply(update)
    (response,) = ask(engine, ("user", 400, 500))
    assert (response.cache, response.catalog_version[-4:]) == (CacheState.WARM, "+0~1")
    same(by_id(response.items), before)
    assert [item.item_id for item in served(engine, allow=["sale"])] == ["item-1"]

    def check() -> None:
        for tag in (*old_tags, "sale"):
            same(served(engine, allow=[tag]), served(fresh, allow=[tag]))
            same(served(engine, deny=[tag]), served(fresh, deny=[tag]))
        assert engine.score("user", ["item-1"]) == pytest.approx(fresh.score("user", ["item-1"]))
        assert [response.cache for response in ask(engine, ("user", 3, 8))] == [CacheState.WARM]
        engine.check_integrity()

    fresh = as_made_anew(engine, update)
    check()
    merged(engine).finish()
    check()
    engine.use_catalog(engine.catalog.anew())
    assert [response.cache for response in ask(engine, ("user", 3, 8))] == [CacheState.WARM]


def test_a_moved_item_is_in_the_next_answer_where_it_moved_to(engine: Engine, log: Log) -> None:
    engine.append("other", ["item-3"])
    updates = CatalogUpdate("item-1", (7, 7, 0), ("red",)), CatalogUpdate("item-9", (7, 7, 1), available=False)
    fresh = as_made_anew(engine, *updates)
    log.apply(*updates)

    def states() -> list[CacheState]:
        return [response.cache for response in ask(engine, ("user", 3, 8), ("other", 3, 8))]

    def check() -> None:
        same(served(engine), served(fresh))
        for filters in ({"exclude": ["item-1", "item-5"]}, {"seen": True}, {"allow": ["red"]}, {"caps": {"red": 3}}):
            same(served(engine, **filters), served(fresh, **filters))
        scores = engine.score("user", ["item-1", "item-5", "item-9"])
        assert scores["item-9"] is None
        assert scores == pytest.approx(fresh.score("user", list(scores)), abs=1e-4)
        assert (sid_of(engine, "item-1"), engine.catalog.rows(["item-1"]).tolist()) == (
            (7, 7, 0),
            [engine.catalog.row("item-1")],
        )
        strangers = [by_id(e.recommend("stranger", 400)) for e in (engine, fresh)]
        same(*strangers)
        assert [item.item_id for item in engine.recommend("stranger", 9)] == [
            item.item_id for item in fresh.recommend("stranger", 9)
        ]
        engine.check_integrity()

    assert states() == [CacheState.COLD, CacheState.WARM]
    check()
    merge = merged(engine)
    check()
    merge.finish()
    assert states() == [CacheState.WARM, CacheState.WARM]  # the merge moves it no second time
    check()


def test_an_item_that_moves_again_and_back_is_in_one_place_at_a_time(engine: Engine, log: Log) -> None:
    home = sid_of(engine, "item-1")
    tags = engine.catalog.tags.of_row(engine.catalog.rows(["item-1"]).item())
    at_home = CatalogUpdate("item-1", home, tags)
    merge = None
    for step, update in enumerate(
        (
            CatalogUpdate("item-1", (7, 7, 0)),
            CatalogUpdate("item-1", (7, 7, 1)),
            at_home,
            CatalogUpdate("item-1", (7, 7, 2), tags),
            CatalogUpdate("item-1", None),
            CatalogUpdate("item-1", (7, 7, 2)),
            CatalogUpdate("item-1", home, ("sale",)),
            at_home,
        )
    ):
        log.apply(update)
        fresh = as_made_anew(engine, update)
        same(served(engine), served(fresh))
        same(served(engine, seen=True), served(fresh, seen=True))
        same(served(engine, exclude=["item-1"]), served(fresh, exclude=["item-1"]))
        assert (engine.catalog.delta is None) == (update.sid is None or (update.sid, update.tags) == (home, tags))
        engine.check_integrity()
        if step % 3 == 0:  # one that is given up says nothing
            merge = merged(engine)
        elif merge is not None:
            merge.abandon()
            merge.discard()
            merge = None
    assert engine.begin_merge() is None


def test_an_item_that_moves_while_it_is_merged_is_where_it_moved_to(engine: Engine, log: Log) -> None:
    home = sid_of(engine, "item-1")
    tags = engine.catalog.tags.of_row(engine.catalog.rows(["item-1"]).item())
    for update in (
        CatalogUpdate("item-1", (7, 7, 1)),
        CatalogUpdate("item-1", home, tags),
        CatalogUpdate("item-1", None),
    ):
        log.apply(CatalogUpdate("item-1", (7, 7, 0)))
        merge = merged(engine)
        log.apply(update)
        fresh = as_made_anew(engine, update)
        for step in (lambda: None, merge.finish, lambda: merged(engine).finish()):
            step()
            same(served(engine), served(fresh))
            same(served(engine, seen=True), served(fresh, seen=True))
            engine.check_integrity()


def test_more_changed_items_than_a_delta_holds_wait(engine: Engine, log: Log) -> None:
    many = [CatalogUpdate(f"{n}", (n // 64 % 8, n // 8 % 8, n % 8)) for n in range(DELTA_ITEMS + 2)]
    log.apply(*many)
    merged(engine).finish()
    log.apply(*(CatalogUpdate(update.item_id, update.sid, ("sale",)) for update in many))
    log.apply(CatalogUpdate("0", many[0].sid, ("sale",)))
    on_sale = {item.item_id for item in served(engine, allow=["sale"])}
    assert on_sale == {f"{n}" for n in range(1, DELTA_ITEMS + 1)}
    others = {item.item_id for item in served(engine)}
    assert others.isdisjoint({"0", f"{DELTA_ITEMS + 1}"})
    assert all(engine.knows_item(update.item_id) for update in many)
    engine.check_integrity()
    merged(engine).finish()
    assert {item.item_id for item in served(engine, allow=["sale"])} == {update.item_id for update in many}


def test_a_changed_item_is_drawn_and_has_a_score_over_legal_codes_at_once(engine: Engine, log: Log) -> None:
    legal = Engine.load(engine.model, tiny_catalog(), config=EngineConfig(normalizer="legal"))
    legal.append("user", ["item-1", "item-2"])
    update = CatalogUpdate("item-5", (7, 7, 0), ("only here",))
    for own, settings in ((engine, {"temperature": 1.0}), (legal, {})):
        Log(own).apply(update)
        found = served(own, **settings)
        assert {item.item_id for item in found} == {f"item-{n}" for n in range(60)}
        assert [item.item_id for item in served(own, allow=["only here"], **settings)] == ["item-5"]
        assert own.catalog.delta is not None
        merged(own).finish()
        same(served(own, **settings), found)


def test_what_joins_after_another_catalog_was_taken_is_read_anew() -> None:
    """Prefixes outlive `use_catalog` of the same table; the reader that comes with it had looked nothing up."""
    for items, changed in ((["item-1", "new"], "new"), (["item-1"], "item-1")):
        engine, anew = Engine.load(tiny_model(), tiny_catalog()), Engine.load(tiny_model(), tiny_catalog())
        update = CatalogUpdate(changed, (7, 7, 0))
        engine.append("user", items)
        engine.use_catalog(engine.catalog.anew())
        engine.update_catalog([update], 1)
        anew.apply_updates([update])
        anew.append("user", items)
        assert ask(engine, ("user", 3, 8))[0].cache is CacheState.COLD
        assert engine.score("user", ["item-5"]) == pytest.approx(anew.score("user", ["item-5"]), abs=1e-4)


def test_what_moves_while_another_change_is_merged_is_no_prefix_of_the_plain_table() -> None:
    engine, plain = Engine.load(tiny_model(), tiny_catalog()), Engine.load(tiny_model(), tiny_catalog())
    for own in (engine, plain):
        own.append("user", ["item-1"])
    sid = engine.catalog.sid("item-5")
    engine.update_catalog([CatalogUpdate("item-5", sid, ("sale",))], 1)
    merge = engine.begin_merge()
    assert merge is not None
    merge.run()
    engine.update_catalog([CatalogUpdate("item-1", (7, 7, 0))], 2)
    merge.finish()
    ask(engine, ("user", 3, 8))
    engine.use_catalog(tiny_catalog())
    assert engine.score("user", ["item-9"]) == pytest.approx(plain.score("user", ["item-9"]), abs=1e-4)
