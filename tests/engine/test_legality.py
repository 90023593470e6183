"""Masks where the search reads them, against counting items: batches, flips and merges in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.live import updates
from tests.property.masks import assert_same_nodes, counted, legal_nodes
from tests.property.test_catalog import TAGS, catalog_of, filters, item_lists
from tests.property.test_live_catalog import NEW, base_of
from xgr_stream.catalog import Catalog, LiveCatalog
from xgr_stream.catalog.catalog import DELTA_ITEMS, FLIPS_REMEMBERED
from xgr_stream.engine.legality import MAX_MASKS, PAIRS, LegalityTables
from xgr_stream.errors import CatalogError
from xgr_stream.types import CatalogUpdate, ItemFilter

CPU = torch.device("cpu")


@examples(100)
@given(st.data())
def test_masks_follow_batches_flips_and_merges(data: st.DataObject) -> None:
    items = data.draw(item_lists())
    base = base_of(items)
    live = LiveCatalog(catalog_of(items))
    tables = LegalityTables(live.catalog, CPU)
    some = updates([*base, *NEW], catalog_of(items).codes, TAGS, base)
    position = 0
    merge = None
    for step in data.draw(st.lists(st.sampled_from(["update", "batch", "batch", "begin", "finish"]), max_size=10)):
        if step == "update":
            changes = data.draw(st.lists(some, min_size=1, max_size=4))
            position += len(changes)
            live.apply(changes, position)
            live.join()
        elif step == "batch":
            wanted = data.draw(st.lists(filters(items), min_size=1, max_size=4))
            resolved = [live.catalog.resolve(one) for one in wanted]
            assert_same_nodes(legal_nodes(tables, resolved), [counted(live.catalog, one) for one in resolved])
            check_others(tables, live.catalog)
        elif step == "begin" and merge is None and (merge := live.begin()) is not None:
            merge.run()
            new = LegalityTables(merge.merged, CPU, like=tables)
            new.prepare(tables.kept)
        elif step == "finish" and merge is not None:
            live.finish(merge)
            tables.replace(new)
            merge = None
    tables.check_integrity()


def check_others(tables: LegalityTables, catalog: Catalog) -> None:
    """Of each depth, which nodes have the same codes above them as one of the other trie."""
    rows, first = np.concatenate(catalog.forest.in_order), len(catalog.trie.items)
    nodes = catalog.forest.paths(catalog.forest.leaves.take(rows))
    sids = [tuple(sid) for sid in catalog.sids_of(rows).tolist()]
    for depth, table in enumerate(tables.trie.others):
        at = [0] * first + [1] * (len(rows) - first) if depth == 0 else nodes[depth - 1].tolist()
        tries = [
            dict(zip([sid[:depth] for sid in sids[part]], at[part], strict=True))
            for part in (slice(first), slice(first, None))
        ]
        pairs = {(tries[0][prefix], tries[1][prefix]) for prefix in tries[0].keys() & tries[1].keys()}
        found = [pair for pair in table.T.tolist() if pair[1] >= 0]
        assert sorted(pairs | {(other, node) for node, other in pairs}) == [tuple(pair) for pair in found]
        assert table.shape == (2, PAIRS)
        assert (table[0, len(found) :] == 0x7FFFFFFF).all()
        assert len(found) < PAIRS


def tagged(count: int, each: int = 1) -> Catalog:
    """So many items, each with a tag of its own for every `each` of them, and the tag `all`."""
    columns = {"item_id": [f"{i:06}" for i in range(count)], "sid": [[i // 40, i % 40] for i in range(count)]}
    return Catalog.from_table({**columns, "tags": [[f"tag-{i // each}", "all"] for i in range(count)]})


def check(tables: LegalityTables, catalog: Catalog, wanted: list[ItemFilter]) -> None:
    resolved = [catalog.resolve(one) for one in wanted]
    assert_same_nodes(legal_nodes(tables, resolved), [counted(catalog, one) for one in resolved])
    tables.check_integrity()


def test_a_batch_may_need_more_masks_than_are_kept() -> None:
    catalog = tagged(40)
    tables = LegalityTables(catalog, CPU)
    everyone = [ItemFilter(allow=(f"tag-{i}",)) for i in range(MAX_MASKS + 5)]
    check(tables, catalog, everyone)
    catalog.set_available(["000003", "000020"], False)
    check(tables, catalog, everyone[::-1])


def test_the_masks_that_were_used_the_longest_ago_go_first() -> None:
    catalog = tagged(40)
    tables = LegalityTables(catalog, CPU)
    first = ItemFilter(allow=("tag-0",))
    for number in range(1, MAX_MASKS + 9):
        check(tables, catalog, [ItemFilter(deny=(f"tag-{number}",)), first])
    keys = [catalog.resolve(ItemFilter(deny=(f"tag-{number}",))).tags_key for number in range(MAX_MASKS + 9)]
    kept = [*keys[-(MAX_MASKS - 2) :], catalog.resolve(first).tags_key]
    assert sorted(tables.kept, key=repr) == sorted(kept, key=repr)
    assert tables.kept[0] == keys[-(MAX_MASKS - 2)]
    check(tables, catalog, [ItemFilter()])


def test_more_flips_than_are_remembered_make_the_masks_anew() -> None:
    catalog = tagged(FLIPS_REMEMBERED + 40, each=1000)
    tables = LegalityTables(catalog, CPU)
    wanted = [ItemFilter(allow=("tag-1",)), ItemFilter(), ItemFilter(allow=(("all", "tag-0"),), exclude=("000001",))]
    check(tables, catalog, wanted)
    ids = list(catalog.item_ids)
    for part in (ids[: FLIPS_REMEMBERED // 2], ids[FLIPS_REMEMBERED // 2 :]):
        catalog.set_available(part, False)
    assert catalog.rows_flipped_since(0) is None
    catalog.set_available(ids[1500:1502], True)
    check(tables, catalog, wanted)


def test_tag_filters_in_use_have_their_masks_after_a_merge() -> None:
    live = LiveCatalog(Catalog.from_table({"item_id": ["a", "b"], "sid": [[0], [1]], "tags": [["x"], ["y"]]}))
    tables = LegalityTables(live.catalog, CPU)
    tables.bring([live.catalog.resolve(ItemFilter(allow=("x",)))])
    tables.bring([live.catalog.resolve(ItemFilter(deny=("y",)))])
    live.apply([CatalogUpdate("c", (0,), ("x",))], 1)
    merge = live.begin()
    assert merge is not None
    merge.run()
    new = LegalityTables(merge.merged, CPU, like=tables)
    new.prepare(tables.kept)
    live.apply([CatalogUpdate("a", (0,), ("x",), available=False)], 2)
    live.finish(merge)
    tables.replace(new)
    assert tables.kept == (((("x",),), ()), (None, (("y",),)))
    check(tables, live.catalog, [ItemFilter(allow=("x",)), ItemFilter(deny=("y",)), ItemFilter(exclude=("c",))])


def test_nothing_is_left_of_a_delta_that_is_gone() -> None:
    live = LiveCatalog(tagged(3))
    tables = LegalityTables(live.catalog, CPU)
    for position, sid in enumerate(((0, 1), None, (7, 7)), start=1):
        live.apply([CatalogUpdate(f"new-{n}", sid, ("all",)) for n in range(3)], position)
        live.join()
        check(tables, live.catalog, [ItemFilter(), ItemFilter(deny=(f"tag-{position - 1}",))])


def test_exclusions_empty_what_they_leave_without_a_legal_item() -> None:
    columns = {"item_id": ["d", "c", "b", "a"], "sid": [[2, 0], [0, 1], [0, 1], [0, 0]]}
    catalog = Catalog.from_table({**columns, "tags": [["x"], ["y"], ["x", "y"], []]}, codes=(4, 4))
    tables = LegalityTables(catalog, CPU)

    def nodes(wanted: ItemFilter) -> list[list[int]]:
        (found,) = legal_nodes(tables, [catalog.resolve(wanted)])
        return [np.flatnonzero(legal).tolist() for legal in found]

    assert nodes(ItemFilter(exclude=("b",))) == [[0, 1], [0, 1, 2]]
    assert nodes(ItemFilter(exclude=("b", "c"))) == [[0, 1], [0, 2]]
    assert nodes(ItemFilter(exclude=("a", "b", "c", "d"))) == [[], []]
    assert nodes(ItemFilter(allow=("x",), exclude=("b",))) == [[1], [2]]
    assert nodes(ItemFilter()) == [[0, 1], [0, 1, 2]]
    assert not any(len(emptied) for emptied in tables.exclusions.emptied_nodes)  # nothing to look through


def test_a_damaged_mask_is_found() -> None:
    catalog = tagged(3)
    tables = LegalityTables(catalog, CPU)
    tables.bring([catalog.resolve(ItemFilter(allow=("tag-1",)))])
    tables.check_integrity()
    tables.node_masks[1][1, 2] = True
    with pytest.raises(
        CatalogError, match=r"node 2 of level 1 is legal in the mask of tags \(\(\('tag-1',\),\), \(\)\), and 0"
    ):
        tables.check_integrity()


def test_bytes_are_those_of_all_that_lies_on_the_device() -> None:
    catalog = tagged(40)
    tables = LegalityTables(catalog, CPU)
    nodes, items, masks = sum(tables.num_nodes) + 2 * DELTA_ITEMS, 40 + DELTA_ITEMS, len(tables.node_masks[0])
    starts, pairs = sum((2, tables.num_nodes[0] + DELTA_ITEMS)) + catalog.levels, 80
    others = catalog.levels * 2 * PAIRS
    integers = starts + nodes + items + (items + 1) + pairs + others
    assert tables.num_bytes == 4 * integers + masks * (nodes + items) + items
