"""A catalog that changes under an engine: items that come and go, another catalog, updates and their merges."""

from __future__ import annotations

import contextlib
import re
import sys
import tracemalloc
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from tests.property.users import ask
from xgr_stream.engine import Engine
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.errors import CatalogError, InvalidUpdate, NothingLegal
from xgr_stream.testing import tiny_catalog
from xgr_stream.types import CacheState, CatalogUpdate, ItemFilter, UserEvent


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
    engine.bring_legality()
    assert (engine.catalog.own_row("new"), engine.catalog.sid("new")) == (None, (1, 1, 1))
    engine.apply_updates([])
    assert (engine.catalog.delta, engine.catalog.sid("new")) == (None, (1, 1, 1))


def test_a_merge_that_fails_anywhere_before_it_swaps_leaves_the_old_catalog_whole(engine: Engine) -> None:
    """Memory runs out at each line of it in turn; what was to be merged is, once there is enough."""
    engine.append("user", ["item-1", "new", "item-2"])
    updates: list[CatalogUpdate] = []

    def arrive(update: CatalogUpdate) -> None:
        updates.append(update)
        engine.update_catalog([update], len(updates))

    def answers() -> list[list[str]]:
        red = ItemFilter(allow=("red",))
        found = ask(engine, ("user", 9, 32), ("user", 9, 32, red), (f"other-{failed}", 9, 32))
        return [[item.item_id for item in response.items] for response in found]

    arrive(CatalogUpdate("new", (1, 1, 1), ("red",)))
    arrive(CatalogUpdate("item-1", (2, 2, 2), ("red",)))
    row = engine.catalog.row("item-5")
    assert row is not None
    other = "item-5", engine.catalog.sid("item-5"), engine.catalog.columns.tags.of_row(row)
    tried: set[tuple[str, int]] = set()
    while True:
        failed = len(tried)
        merge = engine.begin_merge()
        assert merge is not None
        merge.run()
        arrive(CatalogUpdate(*other, available=bool(failed % 2)))  # to be caught up with
        engine.append(f"other-{failed}", ["item-3"])
        before, version = answers(), engine.catalog.version
        engine.history.apply(UserEvent(f"other-{failed}", f"unknown-{failed}"))  # interned since
        try:
            with failing(merge, tried):
                merge.finish()
            break
        except MemoryError:
            pass
        assert not merge.swapping
        assert (answers(), engine.catalog.version) == (before, version)
        engine.check_integrity()
        merge.abandon()
        merge.discard()
    assert len(tried) > 50
    merge.discard()
    engine.check_integrity()
    fresh = Engine.load(engine.model, tiny_catalog())
    fresh.apply_updates(updates)
    fresh.append("user", ["item-1", "new", "item-2"])
    assert engine.catalog.version == fresh.catalog.version
    for allow in ([], ["red"]):
        found, expected = (e.recommend("user", k=9, beam_width=64, allow=allow) for e in (engine, fresh))
        assert [item.item_id for item in found] == [item.item_id for item in expected]


def test_the_swap_itself_takes_no_memory_to_speak_of(engine: Engine) -> None:
    """Nothing in it can run out of it, with half of the engine changed."""
    items = [f"new-{n}" for n in range(5_000)]
    for item in items:
        engine.history.apply(UserEvent("user", item))
    engine.update_catalog([CatalogUpdate(item, (1, 1, 1)) for item in items], 1)
    merge = engine.begin_merge()
    assert merge is not None
    merge.run()
    swap = merge._swap_to(merge._merge, merge._legality, merge._seen)
    tracemalloc.start()
    swap()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000
    assert engine.catalog.sid("new-4999") == (1, 1, 1)


@contextlib.contextmanager
def failing(merge: CatalogMerge, tried: set[tuple[str, int]]) -> Iterator[None]:
    """Memory runs out at the first line of the package, before the swap, at which it has not yet."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        line = frame.f_code.co_filename, frame.f_lineno
        if "/xgr_stream/" not in line[0]:
            return None
        if event == "line" and line not in tried and not merge.swapping:
            tried.add(line)
            raise MemoryError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


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


@pytest.mark.parametrize(
    ("updates", "said"),
    [
        (None, "updates must be CatalogUpdates, several of them, not None"),
        (CatalogUpdate("new", (1, 1, 1)), "updates must be CatalogUpdates, several of them, not CatalogUpdate"),
        (["new"], "updates must be CatalogUpdates, not 'new'"),
        ([CatalogUpdate("old", (1, 1, 1)), CatalogUpdate("new", (1, 9, 1))], "item 'new': sid must hold a code from 0"),
        ([CatalogUpdate("new", (1, 1))], "item 'new': sid must hold 3 codes"),
    ],
)
def test_updates_that_are_none_change_nothing(engine: Engine, updates: Any, said: str) -> None:
    version = engine.catalog.version
    with pytest.raises(InvalidUpdate, match=re.escape(said)):
        engine.apply_updates(updates)
    assert engine.catalog.version == version
    assert not engine.knows_item("old")


def test_another_catalog_that_there_is_no_memory_for_leaves_the_one_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is lacking."""
    engine.append("user", ["item-1", "item-2"])
    before, catalog = engine.recommend("user", k=3), engine.catalog
    other = tiny_catalog(items=10, seed=5)
    parts = [
        "legality.LegalityTables._allocate_masks",
        "legality.LegalityTables._write_mask",
        "item_tensors.ItemTensors.nodes",
        "context.ContextReader.__init__",
        "context.ContextReader.look_up_new_items",
    ]
    for part in parts:
        with monkeypatch.context() as patch:
            patch.setattr(f"xgr_stream.engine.{part}", no_memory)
            with pytest.raises(MemoryError):
                engine.use_catalog(other)
        assert engine.catalog is catalog
        assert engine.recommend("user", k=3) == before
        engine.catalog.set_available([before[0].item_id], False)
        assert before[0].item_id not in {item.item_id for item in engine.recommend("user", k=3)}
        engine.catalog.set_available([before[0].item_id], True)
        engine.check_integrity()
    engine.use_catalog(other)
    assert engine.catalog is other
    engine.check_integrity()


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError
