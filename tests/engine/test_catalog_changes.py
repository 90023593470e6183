"""A catalog that changes under an engine: items that come and go, another catalog, updates and their merges."""

from __future__ import annotations

import pytest

from tests.property.users import ask
from xgr_stream.engine import Engine
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.errors import CatalogError, NothingLegal
from xgr_stream.testing import tiny_catalog
from xgr_stream.types import CacheState, CatalogUpdate


def test_availability_counts_from_the_next_request_on_and_keeps_users_warm(engine):
    engine.append("user", ["item-1"])
    best = engine.recommend("user", k=3)[0].item_id
    before = engine.catalog.version
    engine.catalog.set_available([best], False)
    (response,) = ask(engine, ("user", 3, 8))
    assert response.cache is CacheState.WARM
    assert best not in {r.item_id for r in response.items}
    assert response.catalog_version == engine.catalog.version != before


def test_another_catalog_makes_prefixes_be_computed_anew(engine):
    engine.append("user", ["item-1", "item-2"])
    other = tiny_catalog(seed=1)
    engine.use_catalog(other)
    (response,) = ask(engine, ("user", 3, 8))
    assert response.cache is CacheState.COLD
    assert response.catalog_version == other.version
    fresh = Engine.load(engine.model, other)
    fresh.append("user", ["item-1", "item-2"])
    assert [r.item_id for r in response.items] == [r.item_id for r in fresh.recommend("user", k=3, beam_width=8)]
    engine.check_integrity()


def test_another_catalog_makes_a_merge_that_is_under_way_void(engine: Engine) -> None:
    engine.update_catalog([CatalogUpdate("new", (1, 1, 1))], 1)
    merge = engine.begin_merge()
    assert merge is not None
    merge.run()
    other = tiny_catalog(items=10, seed=5)
    engine.use_catalog(other)
    engine.update_catalog([CatalogUpdate("newer", (1, 1, 2))], 1)
    later = engine.begin_merge()
    assert later is not None
    merge.finish()
    merge.discard()
    merge.abandon()
    assert (engine.catalog, engine.begin_merge()) == (other, None)
    later.run()
    later.finish()
    assert (len(engine.catalog.trie.items), engine.catalog.sid("newer"), engine.knows_item("new")) == (
        11,
        (1, 1, 2),
        False,
    )
    engine.check_integrity()


def test_updates_beside_a_merge_are_refused_and_count_once_it_is_given_up(engine: Engine) -> None:
    engine.update_catalog([CatalogUpdate("new", (1, 1, 1))], 1)
    merge = engine.begin_merge()
    assert merge is not None
    version = engine.catalog.version
    with pytest.raises(CatalogError, match="finish or abandon it"):
        engine.apply_updates([CatalogUpdate("newer", (1, 1, 2))])
    assert engine.catalog.version == version
    merge.abandon()
    engine.apply_updates([CatalogUpdate("newer", (1, 1, 2))])
    assert (engine.catalog.sid("new"), engine.catalog.sid("newer")) == ((1, 1, 1), (1, 1, 2))
    assert engine.catalog.version.endswith("+2")


def test_updates_that_there_is_no_memory_to_merge_are_merged_with_the_next(engine: Engine, monkeypatch) -> None:
    def run(_: CatalogMerge) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(CatalogMerge, "run", run)
        with pytest.raises(MemoryError):
            engine.apply_updates([CatalogUpdate("new", (1, 1, 1))])
    assert not engine.knows_item("new")
    engine.apply_updates([])
    assert engine.catalog.sid("new") == (1, 1, 1)


def test_a_tag_that_no_item_has_any_more_is_forgotten(engine: Engine) -> None:
    """Its mask, too: the next catalog is made with those of the tags that were asked for."""
    engine.append("user", ["item-1"])
    known = set(engine.catalog.columns.tags.names)
    for number in range(4):
        engine.apply_updates([CatalogUpdate("new", (1, 2, 3), (f"week-{number}", "red"))])
        (item,) = engine.recommend("user", allow=[f"week-{number}"])
        assert item.item_id == "new"
        assert set(engine.catalog.columns.tags.names) == known | {f"week-{number}"}
        assert engine.catalog.columns.tags.of_row(engine.catalog.row("new")) == ("red", f"week-{number}")
        engine.check_integrity()
    with pytest.raises(NothingLegal):
        engine.recommend("user", allow=["week-0"])
    assert engine.recommend("user", deny=["week-0"]) == engine.recommend("user")
