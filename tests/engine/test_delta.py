"""New items, from the update that brings them until a merge has taken them in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from threading import Event
from typing import Any

import pytest

from tests.engine.deltas import Found, Log, by_id, merged, same
from tests.property.users import ask
from xgr_stream.catalog import Catalog
from xgr_stream.catalog.catalog import DELTA_ITEMS
from xgr_stream.config import EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.errors import NothingLegal
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.types import CacheState, CatalogUpdate, RecommendRequest, RecommendResponse


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
