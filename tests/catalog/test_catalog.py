"""What the property tests do not reach: edges, lookups, kept tag masks."""

from __future__ import annotations

import numpy as np
import pytest

from xgr_stream.catalog import Catalog, LiveCatalog
from xgr_stream.catalog.filters import MAX_TAG_FILTERS
from xgr_stream.errors import CatalogError
from xgr_stream.testing import tiny_items
from xgr_stream.types import NO_FILTER, CatalogUpdate, ItemFilter


@pytest.fixture
def catalog() -> Catalog:
    """Leaves (0, 0): a; (0, 1): b, c; (2, 0): d."""
    return Catalog.from_table(
        {
            "item_id": ["d", "c", "b", "a"],
            "sid": [[2, 0], [0, 1], [0, 1], [0, 0]],
            "tags": [["x"], ["y"], ["x", "y"], []],
        },
        codes=(4, 4),
    )


def test_lookups(catalog: Catalog) -> None:
    assert [catalog.row(item_id) for item_id in ("a", "b", "c", "d", "e")] == [0, 1, 2, 3, None]
    assert catalog.rows(("d", "e", "a", "a")).tolist() == [3, -1, 0, 0]
    assert catalog.sid("c") == (0, 1)
    assert catalog.sid("e") is None


def test_the_trie_of_a_small_catalog(catalog: Catalog) -> None:
    trie = catalog.trie
    assert [codes.tolist() for codes in trie.node_codes] == [[0, 2], [0, 1, 0]]
    assert [starts.tolist() for starts in trie.child_starts] == [[0, 2], [0, 2, 3]]
    assert [starts.tolist() for starts in trie.leaf_starts] == [[0, 3], [0, 2, 3], [0, 1, 2, 3]]
    assert trie.item_starts.tolist() == [0, 1, 3, 4]
    arrays = (*trie.node_codes, *trie.child_starts, *trie.leaf_starts, trie.item_starts)
    assert all(array.dtype == np.int32 for array in arrays)


def test_exclusions_empty_a_leaf_only_when_all_its_items_are_excluded(catalog: Catalog) -> None:
    assert [nodes.tolist() for nodes in catalog.resolve(ItemFilter(exclude=("b",))).emptied] == [[], []]
    assert [nodes.tolist() for nodes in catalog.resolve(ItemFilter(exclude=("b", "c"))).emptied] == [[], [1]]
    everything = catalog.resolve(ItemFilter(exclude=("a", "b", "c", "d")))
    assert [nodes.tolist() for nodes in everything.emptied] == [[0, 1], [0, 1, 2]]
    assert everything.num_items == 0


def test_exclusions_count_against_the_items_that_the_tags_leave(catalog: Catalog) -> None:
    resolved = catalog.resolve(ItemFilter(allow=("x",), exclude=("b",)))
    assert [nodes.tolist() for nodes in resolved.emptied] == [[0], [1]]
    assert resolved.num_items == 1


def test_a_tag_that_nobody_has_allows_nothing_and_denies_nothing(catalog: Catalog) -> None:
    assert catalog.resolve(ItemFilter(allow=("unheard",))).num_items == 0
    assert catalog.resolve(ItemFilter(deny=("unheard",))).tags_key is None
    assert catalog.resolve(ItemFilter(allow=(("unheard", "x"),))).num_items == 0
    assert catalog.resolve(ItemFilter(deny=(("unheard", "x"),))).tags_key is None
    assert catalog.resolve(ItemFilter(allow=("unheard", "x"))).tags_key == ((("x",),), ())


def test_equal_tag_filters_share_their_masks_and_old_ones_are_dropped(catalog: Catalog) -> None:
    first = catalog.resolve(ItemFilter(allow=("x", "y")))
    assert catalog.resolve(ItemFilter(allow=("y", "x", "y"))).items is first.items
    names = [f"tag-{number}" for number in range(MAX_TAG_FILTERS + 1)]
    many = Catalog.from_table({"item_id": ["a"], "sid": [[0]], "tags": [names]})
    kept = [many.resolve(ItemFilter(allow=(name,))).items for name in names]
    assert many.resolve(ItemFilter(allow=(names[-1],))).items is kept[-1]
    assert many.resolve(ItemFilter(allow=(names[0],))).items is not kept[0]


def test_availability_changes_the_version_and_back(catalog: Catalog) -> None:
    version = catalog.version
    assert version == f"{catalog.base_version}.0"
    catalog.set_available(["b", "b"], False)
    away = catalog.version
    assert (catalog.revision, away.startswith(catalog.base_version)) == (1, True)
    catalog.set_available(["b"], False)
    assert (catalog.revision, catalog.version) == (1, away)
    catalog.set_available(["d"], False)
    assert catalog.version not in (version, away)
    catalog.set_available(iter(["d", "b"]), True)
    assert (catalog.revision, catalog.version) == (3, version)
    assert [counts.tolist() for counts in catalog.live_counts] == [[4], [3, 1], [1, 2, 1]]


def test_an_unknown_item_cannot_change_its_availability(catalog: Catalog) -> None:
    with pytest.raises(CatalogError, match="item_id 'zebra' is not in the catalog"):
        catalog.set_available(["a", "zebra"], False)
    assert catalog.available.all()


def test_a_damaged_count_is_found(catalog: Catalog) -> None:
    catalog.check_integrity()
    catalog.live_counts[1][1] += 1
    with pytest.raises(CatalogError, match="live count of node 1 at depth 1 is 2, not 1"):
        catalog.check_integrity()


def test_no_leaves_have_no_items(catalog: Catalog) -> None:
    positions, rows = catalog.items_at(np.zeros(0, np.int32))
    assert (len(positions), len(rows)) == (0, 0)


def test_one_item() -> None:
    catalog = Catalog.from_table({"item_id": ["only"], "sid": [[3, 0, 7]]})
    assert (catalog.codes, catalog.levels, catalog.num_items) == ((4, 1, 8), 3, 1)
    assert catalog.resolve(ItemFilter(exclude=("only",))).num_items == 0


def test_a_table_s_catalog_anew_is_as_it_was_and_goes_its_own_way() -> None:
    items = tiny_items(items=30)
    fresh, first = Catalog.from_table(items), Catalog.from_table(items)
    live = LiveCatalog(first)
    gone, new = items["item_id"][0], CatalogUpdate("new", (1, 2, 3))
    live.apply([CatalogUpdate(gone, None), new], 2)
    merge = live.begin()
    assert merge is not None
    merge.run()
    live.finish(merge)
    for again in (first.anew(), live.catalog.anew()):
        assert again.version == fresh.version
        assert (again.names.row("new"), again.num_items) == (None, 30)
        assert again.resolve(NO_FILTER).num_items == 30
        other = LiveCatalog(again)
        other.apply([CatalogUpdate("other", (1, 2, 3))], 1)
        again.check_integrity()
    live.catalog.check_integrity()
    assert live.catalog.row("other") is None
    assert live.catalog.resolve(NO_FILTER).num_items == 30
