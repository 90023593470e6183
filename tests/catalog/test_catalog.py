"""What the property tests do not reach: edges, lookups, kept tag masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xgr_stream.catalog import Catalog, LiveCatalog
from xgr_stream.catalog.filters import LOOKED_AT
from xgr_stream.errors import CatalogError
from xgr_stream.testing import tiny_items
from xgr_stream.types import CatalogUpdate, ItemFilter


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
    assert [parents.tolist() for parents in trie.parents] == [[0, 0], [0, 0, 1]]
    assert trie.paths(np.array([2, 0], np.int32)).tolist() == [[1, 0], [2, 0]]
    assert [trie.item_bounds(depth).tolist() for depth in range(3)] == [[0, 4], [0, 3, 4], [0, 1, 3, 4]]
    assert trie.item_starts.tolist() == [0, 1, 3, 4]
    arrays = (*trie.node_codes, *trie.child_starts, *trie.parents, trie.item_starts)
    assert all(array.dtype == np.int32 for array in arrays)


def test_a_tag_that_nobody_has_allows_nothing_and_denies_nothing(catalog: Catalog) -> None:
    assert catalog.resolve(ItemFilter(allow=("unheard",))).leaves_any() is False
    assert catalog.resolve(ItemFilter(deny=("unheard",))).tags_key is None
    assert catalog.resolve(ItemFilter(allow=(("unheard", "x"),))).leaves_any() is False
    assert catalog.resolve(ItemFilter(deny=(("unheard", "x"),))).tags_key is None
    assert catalog.resolve(ItemFilter(allow=("unheard", "x"))).tags_key == ((("x",),), ())


def test_equal_tag_filters_have_one_key(catalog: Catalog) -> None:
    first, other = (catalog.resolve(ItemFilter(allow=allow)) for allow in (("x", "y"), ("y", "x", "y")))
    assert first.tags_key == other.tags_key


def test_excluded_items_are_in_sid_order_and_each_once(catalog: Catalog) -> None:
    resolved = catalog.resolve(ItemFilter(exclude=("d", "c", "unheard", "a", "c")))
    assert resolved.excluded_rows.tolist() == [0, 2, 3]
    assert (resolved.excluded >> 32).tolist() == [0, 1, 2]
    wider = catalog.filters.without(resolved, np.array([1, 0], np.int32))
    assert wider.excluded_rows.tolist() == [0, 1, 2, 3]
    assert (resolved.leaves_any(), wider.leaves_any()) == (True, False)


def test_only_so_many_items_are_looked_at_for_one_that_is_left() -> None:
    count = LOOKED_AT + 9
    ids = [f"item-{row:05}" for row in range(count)]
    table = {"item_id": ids, "sid": [[row] for row in range(count)], "tags": [["x"]] * count}
    catalog = Catalog.from_table(table | {"popularity": list(range(count))})
    catalog.set_available(ids[:-1], False)
    allowed = catalog.resolve(ItemFilter(allow=("x",)))
    assert allowed.leaves_any() is None
    assert catalog.resolve(ItemFilter(deny=("unheard",))).leaves_any() is True
    assert catalog.popular(3, allowed).tolist() == [count - 1]
    catalog.set_available(ids[3:4], True)
    assert allowed.leaves_any() is True
    assert catalog.popular(3, allowed).tolist() == [count - 1, 3]


def test_none_is_looked_at_where_fewer_are_denied_or_excluded_than_there_are() -> None:
    count = LOOKED_AT + 9
    ids = [f"item-{row:05}" for row in range(count)]
    tags = [["x"]] * (count - 2) + [[], []]
    catalog = Catalog.from_table({"item_id": ids, "sid": [[row] for row in range(count)], "tags": tags})
    left, none_left = (catalog.resolve(ItemFilter(ids[-most:], (), ("x", "unheard"))) for most in (1, 2))
    assert (left.leaves_any(), none_left.leaves_any()) == (True, None)
    catalog.set_available(ids[:1], False)  # may be one of the denied: so many are no longer known to be others
    assert left.leaves_any() is None


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
    assert [counts.tolist() for counts in catalog.live_counts()] == [[4], [3, 1], [1, 2, 1]]


@pytest.mark.parametrize("available", ["False", 0, None, 2])
def test_availability_is_true_or_false(catalog: Catalog, available: Any) -> None:
    with pytest.raises(CatalogError, match=r"^available must be true or false, not "):
        catalog.set_available(["b"], available)
    catalog.check_integrity()


@pytest.mark.parametrize(
    ("item_ids", "message"),
    [
        ([1], "item_ids must hold item ids, which are strings, not 1"),
        (["b", None], "item_ids must hold item ids, which are strings, not None"),
        ([["b"]], r"item_ids must hold item ids, which are strings, not \['b'\]"),
        (None, "item_ids must be a collection of item ids, not None"),
        (5, "item_ids must be a collection of item ids, not 5"),
        (b"b", "item_ids must be a collection of item ids, not b'b'"),
    ],
)
def test_what_comes_or_goes_is_named_by_strings(catalog: Catalog, item_ids: Any, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        catalog.set_available(item_ids, False)
    assert catalog.available.all()


def test_an_unknown_item_cannot_change_its_availability(catalog: Catalog) -> None:
    with pytest.raises(CatalogError, match="item_id 'zebra' is not in the catalog"):
        catalog.set_available(["a", "zebra"], False)
    assert catalog.available.all()


def test_availability_that_the_version_does_not_tell_is_found(catalog: Catalog) -> None:
    catalog.check_integrity()
    catalog.available[1] = False
    with pytest.raises(CatalogError, match="4 items are said to be live, not 3"):
        catalog.check_integrity()


def test_no_leaves_have_no_items(catalog: Catalog) -> None:
    positions, rows = catalog.items_at(np.zeros(0, np.int32))
    assert (len(positions), len(rows)) == (0, 0)


def test_one_number_of_codes_is_every_level_s() -> None:
    table = {"item_id": ["only"], "sid": [[3, 0, 7]]}
    assert Catalog.from_table(table, codes=8).codes == (8, 8, 8)
    with pytest.raises(CatalogError, match="has code 7 at level 2, expected 0 to 6"):
        Catalog.from_table(table, codes=7)


def test_one_item() -> None:
    catalog = Catalog.from_table({"item_id": ["only"], "sid": [[3, 0, 7]]})
    assert (catalog.codes, catalog.levels, catalog.num_items) == ((4, 1, 8), 3, 1)
    assert catalog.resolve(ItemFilter(exclude=("only",))).leaves_any() is False


def test_an_item_that_is_to_be_had_in_two_places_is_found(catalog: Catalog) -> None:
    live = LiveCatalog(catalog)
    live.apply([CatalogUpdate("a", (2, 0))], 1)
    live.join()
    catalog.check_integrity()
    catalog.flip(catalog.own_rows(["a"]), True)
    with pytest.raises(CatalogError, match="in its own place, too"):
        catalog.check_integrity()


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
        assert again.available.sum() == 30
        other = LiveCatalog(again)
        other.apply([CatalogUpdate("other", (1, 2, 3))], 1)
        again.check_integrity()
    live.catalog.check_integrity()
    assert live.catalog.row("other") is None
    assert live.catalog.available.sum() == 30
