"""New and changed items, from the update that says so until a merge has taken them in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from threading import Event
from typing import Any

import pytest

from tests.property.users import ask
from xgr_stream.catalog import Catalog
from xgr_stream.catalog.catalog import DELTA_ITEMS
from xgr_stream.config import EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.errors import NothingLegal
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.types import CacheState, CatalogUpdate, Recommendation, RecommendRequest, RecommendResponse

Found = list[Recommendation]


class Log:
    """Updates of one engine's catalog, numbered as they come."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.position = 0

    def apply(self, *updates: CatalogUpdate) -> None:
        self.position += len(updates)
        self._engine.update_catalog(updates, self.position)


@pytest.fixture
def log(engine: Engine) -> Log:
    engine.append("user", ["item-1", "item-2"])
    return Log(engine)


def by_id(found: tuple[Recommendation, ...]) -> Found:
    return sorted(found)


def merged(engine: Engine) -> CatalogMerge:
    merge = engine.begin_merge()
    assert merge is not None
    merge.run()
    return merge


def same(found: Found, expected: Found) -> None:
    assert [(item.item_id, item.sid) for item in found] == [(item.item_id, item.sid) for item in expected]
    assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=1e-4)


def test_a_new_item_is_in_the_next_answer_and_a_merge_changes_none(engine: Engine, log: Log) -> None:
    known = engine.catalog.sid("item-5")
    log.apply(CatalogUpdate("new", (7, 7, 0), ("red",)), CatalogUpdate("beside-item-5", known, ("only here",)))
    (response,) = ask(engine, ("user", 200, 500))
    found = by_id(response.items)
    assert {"new", "beside-item-5"} < {item.item_id for item in found}
    assert response.catalog_version.endswith("+0~2")
    assert response.cache is CacheState.WARM
    fresh = Engine.load(engine.model, tiny_catalog(), config=engine.config)
    fresh.apply_updates([CatalogUpdate("new", (7, 7, 0), ("red",)), CatalogUpdate("beside-item-5", known)])
    fresh.append("user", ["item-1", "item-2"])
    same(found, by_id(fresh.recommend("user", 200, beam_width=500)))
    (only,) = engine.recommend("user", allow=["only here"])
    assert only.item_id == "beside-item-5"
    scores = engine.score("user", ["new", "beside-item-5", "item-5", "unknown"])
    assert scores["beside-item-5"] == pytest.approx(scores["item-5"])
    assert scores["unknown"] is None
    merged(engine).finish()
    engine.check_integrity()
    (after,) = ask(engine, ("user", 200, 500))
    assert after.catalog_version.endswith("+2")
    assert engine.catalog.delta is None
    same(by_id(after.items), found)
    assert engine.score("user", list(scores)) == pytest.approx(scores)


def test_a_new_item_that_is_sold_out_or_gone_is_in_no_further_answer(engine: Engine, log: Log) -> None:
    def there() -> bool:
        return "new" in {item.item_id for item in engine.recommend("user", 200, beam_width=500)}

    for available, expected in ((True, True), (False, False), (True, True)):
        log.apply(CatalogUpdate("new", (7, 7, 0), available=available))
        assert (there(), engine.knows_item("new")) == (expected, True)
        engine.check_integrity()
    log.apply(CatalogUpdate("new", None))
    assert (there(), engine.knows_item("new"), engine.catalog.delta) == (False, False, None)
    log.apply(CatalogUpdate("new", (7, 7, 0)))
    assert "new" not in {item.item_id for item in engine.recommend("user", 200, beam_width=500, exclude=["new"])}


def test_what_a_user_did_with_a_new_item_is_read_once_it_is_known(engine: Engine, log: Log) -> None:
    engine.append("other", ["item-3", "new"])
    engine.append("third", ["item-3", "newest"])
    log.apply(CatalogUpdate("new", (7, 7, 0)), CatalogUpdate("newer", (7, 7, 1)))

    def states() -> list[CacheState]:
        return [response.cache for response in ask(engine, ("user", 3, 8), ("other", 3, 8))]

    assert states() == [CacheState.WARM, CacheState.COLD]
    merge = merged(engine)
    log.apply(CatalogUpdate("newest", (0, 7, 7)))  # numbered anew, but not to be read anew
    assert states() == [CacheState.WARM, CacheState.WARM]

    def unseen(user: str) -> set[str]:
        return {"item-3", "new", "newer", "newest"} & {
            item.item_id for item in engine.recommend(user, 200, beam_width=500, seen=True)
        }

    def check() -> None:
        assert unseen("other") == {"newer", "newest"}
        assert unseen("third") == {"new", "newer"}
        assert states() == [CacheState.WARM, CacheState.WARM]

    check()
    merge.finish()
    check()
    merged(engine).finish()
    check()


def test_a_merge_that_is_given_up_leaves_new_items_served(engine: Engine, log: Log) -> None:
    log.apply(CatalogUpdate("new", (7, 7, 0)))
    before = engine.recommend("user", 200, beam_width=500)
    merge = merged(engine)
    log.apply(CatalogUpdate("newer", (7, 7, 1)))
    merge.abandon()
    merge.discard()
    assert {item.item_id for item in engine.recommend("user", 200, beam_width=500)} == {
        "newer",
        *(item.item_id for item in before),
    }
    engine.check_integrity()


def test_more_new_items_than_a_delta_holds_wait(engine: Engine, log: Log) -> None:
    """The first by their last updates are served; one that is updated once more is the last."""
    many = [CatalogUpdate(f"{n}", (n // 64 % 8, n // 8 % 8, n % 8)) for n in range(DELTA_ITEMS + 2)]
    log.apply(*many)
    log.apply(many[0])
    engine.bring_legality()
    known = {update.item_id for update in many if engine.knows_item(update.item_id)}
    assert known == {f"{n}" for n in range(1, DELTA_ITEMS + 1)}
    engine.check_integrity()
    merged(engine).finish()
    assert all(engine.knows_item(update.item_id) for update in many)
    engine.check_integrity()


def test_a_new_item_is_drawn_at_once(engine: Engine, log: Log) -> None:
    log.apply(CatalogUpdate("new", (7, 7, 0), ("only here",)), CatalogUpdate("beside", engine.catalog.sid("item-5")))
    found = engine.recommend("user", 200, beam_width=500)
    drawn = engine.recommend("user", 200, beam_width=500, temperature=1.0)
    same(by_id(drawn), by_id(found))
    assert {"new", "beside"} < {item.item_id for item in drawn}
    assert [item.item_id for item in engine.recommend("user", allow=["only here"], temperature=1.0)] == ["new"]
    log.apply(CatalogUpdate("new", (7, 7, 0), ("only here",), available=False))
    with pytest.raises(NothingLegal):
        engine.recommend("user", allow=["only here"], temperature=1.0)


def test_caps_count_the_tags_of_new_items_and_others_together(engine: Engine, log: Log) -> None:
    log.apply(*(CatalogUpdate(f"new-{n}", (7, 7, n), ("brand:a", "red")) for n in range(4)))
    found = engine.recommend("user", 200, beam_width=500, caps={"brand:*": 2})
    assert sum(item.item_id.startswith("new-") for item in found) == 2
    reds = {item.item_id for item in engine.recommend("user", 200, beam_width=500, allow=["red"])}
    found = engine.recommend("user", 200, beam_width=500, caps={"red": 3})
    assert sum(item.item_id in reds for item in found) == 3


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_scores_over_legal_codes_are_those_of_a_catalog_made_anew(temperature: float | None) -> None:
    """Of the items in the delta, and of those whose beginnings they share."""
    config = EngineConfig(normalizer="legal")
    engine, fresh = (Engine.load(tiny_model(), tiny_catalog(), config=config) for _ in range(2))
    sid = engine.catalog.sid("item-5")
    new = [("new", (7, 7, 0)), ("beside", sid), ("near", (*sid[:2], 7 - sid[2])), ("far", (sid[0], 7 - sid[1], 1))]
    updates = [CatalogUpdate(item_id, own) for item_id, own in new]
    Log(engine).apply(*updates)
    fresh.apply_updates(updates)
    assert fresh.catalog.delta is None

    def items(engine: Engine) -> Found:
        return by_id(engine.recommend("user", 200, beam_width=500, temperature=temperature, exclude=["item-7"]))

    for each in (engine, fresh):
        each.append("user", ["item-1"])
    found = items(engine)
    assert engine.catalog.delta is not None
    assert {item.item_id for item in found} > {item_id for item_id, _ in new}
    same(found, items(fresh))
    asked = [*(item_id for item_id, _ in new), "item-5", "item-7", "item-9"]
    assert engine.score("user", asked) == pytest.approx(fresh.score("user", asked), abs=1e-4)
    merged(engine).finish()
    same(items(engine), found)


def served(engine: Engine, **filters: Any) -> Found:
    return by_id(engine.recommend("user", 400, beam_width=500, **filters))


def sid_of(engine: Engine, item_id: str) -> tuple[int, ...]:
    sid = engine.catalog.sid(item_id)
    assert sid is not None
    return sid


def as_made_anew(engine: Engine, *updates: CatalogUpdate) -> Engine:
    """Of a catalog in which these are merged, with the same user."""
    fresh = Engine.load(engine.model, tiny_catalog(), config=engine.config)
    fresh.apply_updates(updates)
    fresh.append("user", ["item-1", "item-2"])
    return fresh


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


@pytest.fixture
def worker(engine: Engine) -> Iterator[DeviceWorker]:
    worker = DeviceWorker(engine, engine.config, SystemClock(), Metrics())
    worker.start()
    yield worker
    assert worker.stop(30)


def test_a_batch_under_way_keeps_its_version(engine: Engine, log: Log, worker: DeviceWorker) -> None:
    """What comes behind a batch that was begun is applied once the batch is answered."""
    under_way, go_on = Event(), Event()
    begin = engine.begin

    def held(requests: list[Any]) -> Any:
        pending = begin(requests)
        under_way.set()
        assert go_on.wait(10)
        return pending

    engine.begin = held

    def asked() -> Future[RecommendResponse]:
        return worker.submit(RecommendRequest("r", "user", 200, 500), engine.history.view("user"), None)

    first = asked()
    assert under_way.wait(10)
    update = worker.between_batches(lambda: log.apply(CatalogUpdate("new", (7, 7, 0))))
    second = asked()
    go_on.set()
    update.result(10)
    before, after = (future.result(10) for future in (first, second))
    assert "~" not in before.catalog_version
    assert "new" not in {item.item_id for item in before.items}
    assert after.catalog_version.endswith("+0~1")
    assert "new" in {item.item_id for item in after.items}


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


def test_few_beams_draw_new_items_as_often_as_they_will_be_drawn() -> None:
    table = {"item_id": ["old"], "sid": [[1, 1, 1]]}
    beside, merged = (Engine.load(tiny_model(), Catalog.from_table(table, codes=(8, 8, 8))) for _ in range(2))
    update = CatalogUpdate("new", (1, 2, 1))
    merged.apply_updates([update])
    beside.update_catalog([update], 1)
    drawn = []
    for engine in (beside, merged):
        engine.append("user", ["old"])
        draws = (engine.recommend("user", 1, beam_width=1, temperature=1.0, seed=seed) for seed in range(200))
        drawn.append(sum(items[0].item_id == "new" for items in draws))
    assert min(drawn) > 20
    assert abs(drawn[0] - drawn[1]) < 40
