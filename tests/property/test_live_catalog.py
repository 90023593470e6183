"""A catalog that follows updates against plain Python, whatever the merges do meanwhile."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.live import Base, Place, content, updates
from tests.property.test_catalog import TAGS, Item, catalog_of, filters, item_lists
from xgr_stream.catalog import Catalog, LiveCatalog, Merge
from xgr_stream.catalog.catalog import DELTA_ITEMS
from xgr_stream.catalog.live import LEFT_TO_FINISH, updated
from xgr_stream.errors import CatalogError
from xgr_stream.types import NO_FILTER, CatalogUpdate, ItemFilter

NEW = [f"new {i}" for i in range(5)]


def base_of(items: list[Any]) -> Base:
    return {i.item_id: Place(i.sid, tuple(sorted(i.tags)), i.available) for i in items}


def check(catalog: Catalog, places: dict[str, Place], wanted: ItemFilter) -> None:
    """Every item where it belongs, in order, the delta's behind; and those that a filter leaves."""
    catalog.check_integrity()
    behind = set() if catalog.delta is None else set(catalog.delta.item_ids)
    in_order = sorted(places, key=lambda item_id: (item_id in behind, places[item_id].sid, item_id))
    rows = np.concatenate(catalog.forest.in_order)
    if catalog.delta is not None:  # whose items have no other place
        replaced = np.isin(rows, catalog.delta.own_rows)
        assert not catalog.available[rows[replaced]].any()
        rows = rows[~replaced]
    assert catalog.ids_of(rows) == in_order
    assert [catalog.row(item_id) for item_id in in_order] == catalog.rows(in_order).tolist() == rows.tolist()
    assert [catalog.sid(item_id) for item_id in in_order] == [places[item_id].sid for item_id in in_order]
    assert catalog.sids_of(rows).tolist() == [list(places[item_id].sid) for item_id in in_order]
    assert [catalog.tags.of_row(row) for row in rows.tolist()] == [places[item_id].tags for item_id in in_order]
    ends = zip(catalog.forest.paths(catalog.forest.leaves.take(rows))[-1].tolist(), in_order, strict=True)
    assert [places[item_id].sid for _, item_id in sorted(ends)] == [places[item_id].sid for item_id in in_order]
    assert [catalog.sid(item_id) for item_id in NEW if item_id not in places] == [None] * len(set(NEW) - set(places))

    def passes(item_id: str) -> bool:
        sid, tags, available = places[item_id]
        item = Item(item_id, sid, frozenset(tags), 0, available)
        return item.passes(wanted)

    passing = [item_id for item_id in in_order if passes(item_id)]
    resolved = catalog.resolve(wanted)
    assert resolved.leaves_any() == bool(passing)
    leaves = np.arange(catalog.forest.num_leaves, dtype=np.int32)
    _, rows = catalog.items_at(leaves)
    assert catalog.ids_of(rows[resolved.allows(rows)]) == passing
    assert set(catalog.ids_of(catalog.popular(100, resolved))) == set(passing)
    if catalog.delta is not None:
        table = Catalog.from_table(catalog.to_table())
        assert sorted(table.item_ids) == sorted(places)
        assert {item_id: table.sid(item_id) for item_id in places} == {i: place.sid for i, place in places.items()}


def check_popular(catalog: Catalog, items: list[Item], places: dict[str, Place], wanted: ItemFilter) -> None:
    """An item has its table's popularity wherever it stands; those that updates brought come last."""
    popularity = {item.item_id: item.popularity for item in items}
    table = base_of(items)

    def order(item_id: str) -> tuple[object, ...]:
        if item_id in table:
            return 0, -popularity[item_id], table[item_id].sid, item_id
        row = catalog.own_row(item_id)
        return (2, places[item_id].sid, item_id) if row is None else (1, tuple(catalog.sids[row].tolist()), item_id)

    resolved = catalog.resolve(wanted)
    rows = catalog.rows(list(places))
    passing = sorted(catalog.ids_of(rows[resolved.allows(rows)]), key=order)
    for k in (1, 3, 100):
        assert catalog.ids_of(catalog.popular(k, resolved)) == passing[:k]
    saved = catalog.to_table()
    pairs = zip(saved["item_id"].to_pylist(), saved["popularity"].to_pylist(), strict=True)
    assert sorted(pairs) == sorted((item_id, popularity.get(item_id, 0)) for item_id in places)


@examples(100)
@given(st.data())
def test_every_version_is_what_its_name_says(data: st.DataObject) -> None:
    items = data.draw(item_lists())
    base, codes = base_of(items), catalog_of(items).codes
    most = data.draw(st.sampled_from([0, 1, 2, 3, DELTA_ITEMS]))
    with patch("xgr_stream.catalog.live.DELTA_ITEMS", most):
        live = LiveCatalog(catalog_of(items))
    log: list[CatalogUpdate] = []
    merge: Merge | None = None
    some = updates([*base, *NEW], codes, TAGS, base)
    steps = st.sampled_from(["update", "update", "begin", "run", "follow", "finish", "abandon"])
    for step in data.draw(st.lists(steps, max_size=12)):
        if step == "update":
            batch = data.draw(st.lists(some, min_size=1, max_size=4))
            log += batch
            live.apply(batch, len(log))
        elif step == "begin":
            began = live.begin()
            assert began is None or merge is None
            merge = began or merge
        elif merge is not None and step == "run":
            merge.run()
        elif merge is not None and step == "follow" and hasattr(merge, "merged"):
            merge.follow(live.handed_over(left=0))
        elif merge is not None and step == "finish" and hasattr(merge, "merged"):
            live.finish(merge)
            merge.discard()
            merge = None
        elif merge is not None and step == "abandon":
            live.abandon(merge)
            merge.discard()
            merge = None
        live.join()
        places, wanted = content(base, log, live.catalog.version, most), data.draw(filters(items))
        check(live.catalog, places, wanted)
        check_popular(live.catalog, items, places, wanted)
    waiting = live.num_waiting
    assert ("~" in live.catalog.version) == (waiting > 0)


@examples(100)
@given(st.data())
def test_a_worker_that_starts_later_serves_the_same(data: st.DataObject) -> None:
    """From all updates, or from what compaction leaves of them, one by one or together."""
    items = data.draw(item_lists())
    base = base_of(items)
    some = updates([*base, *NEW], catalog_of(items).codes, TAGS, base)
    log = data.draw(st.lists(some, max_size=12))
    last = {update.item_id: number for number, update in enumerate(log)}
    compacted = [log[number] for number in sorted(last.values())]
    live = LiveCatalog(catalog_of(items))
    for position, update in enumerate(log, start=1):
        live.apply([update], position)
        if (merge := live.begin()) is not None:
            merge.run()
            live.finish(merge)
    late = updated(catalog_of(items), compacted, len(log))
    assert late.version == (live.catalog.version if log else live.base.version)
    wanted = data.draw(filters(items))
    check(late, content(base, log, late.version), wanted)
    assert [late.item_ids[r] for r in late.popular(9, late.resolve(NO_FILTER))] == [
        live.catalog.item_ids[r] for r in live.catalog.popular(9, live.catalog.resolve(NO_FILTER))
    ]
    check(Catalog.from_table(late.to_table(), codes=late.codes), content(base, log, late.version), wanted)


def test_what_came_during_a_merge_is_left_to_its_thread() -> None:
    live = LiveCatalog(Catalog.from_table({"item_id": ["a"], "sid": [[0, 0]]}, codes=[64, 64]))
    live.apply([CatalogUpdate("first", (1, 1))], 1)
    merge = live.begin()
    assert merge is not None
    assert not live.handed_over()
    merge.run()
    many = [CatalogUpdate(f"{code}", (code // 64, code % 64)) for code in range(LEFT_TO_FINISH + 1)]
    live.apply([*many, CatalogUpdate("a", (0, 0), available=False)], len(many) + 2)
    came = live.handed_over()
    assert len(came) == len(many) + 1
    assert not live.handed_over()
    merge.follow(came)
    live.apply([CatalogUpdate("a", (0, 0)), CatalogUpdate("0", None)], len(many) + 4)
    live.finish(merge)
    assert live.num_waiting == len(many) - 1
    assert live.catalog.version.endswith(f"+1~{len(many) + 4}")
    in_delta = min(len(many) - 1, DELTA_ITEMS)
    assert live.catalog.available.tolist() == [True, True] + [True] * in_delta
    assert live.catalog.ids_of(live.catalog.rows(["1", "first", "2"])) == ["1", "first", "2"]
    live.catalog.check_integrity()


@pytest.mark.parametrize("at_once", [True, False])
def test_those_updated_first_are_served_if_more_wait_than_a_delta_holds(at_once: bool) -> None:
    """Whether updates come one by one or together, before a merge or beside it: a version says what it holds."""
    with patch("xgr_stream.catalog.live.DELTA_ITEMS", 1):
        live = LiveCatalog(Catalog.from_table({"item_id": ["base"], "sid": [[0]]}, codes=[8]))

    def apply(*item_ids: str) -> None:
        updates = [CatalogUpdate(item_id, (1,)) for item_id in item_ids]
        for part in [updates] if at_once else [[update] for update in updates]:
            delta = live.catalog.delta
            live.apply(part, live.position + len(part))
            assert live.catalog.delta is delta  # nothing is made for each update
            live.join()

    def served() -> list[str]:
        return [item_id for item_id in ["base", *"abcde"] if live.catalog.sid(item_id) == (1,)]

    apply("b", "base", "b", "a")
    assert served() == ["base"]
    assert not live.catalog.available[:1].any()
    merge = live.begin()
    assert merge is not None
    merge.run()
    apply("d", "c", "d")
    merge.follow(live.handed_over(left=0))
    apply("e")
    assert served() == ["base"]
    live.finish(merge)
    assert served() == ["base", "a", "b", "c"]


def test_what_would_make_a_version_lie_is_refused() -> None:
    live = LiveCatalog(Catalog.from_table({"item_id": ["a"], "sid": [[0]]}))
    live.apply([], 5)
    with pytest.raises(CatalogError, match="position must be at least 5, not 4"):
        live.apply([], 4)
    with pytest.raises(CatalogError, match=r"no updated one.*\+5: send it an update"):
        live.catalog.set_available(["a"], False)
    with pytest.raises(CatalogError, match=r"must be a table's own catalog.*\+5"):
        LiveCatalog(live.catalog)
