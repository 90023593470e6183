"""The catalog against plain Python over a list of items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.masks import assert_same_nodes, legal_nodes
from xgr_stream.catalog import Catalog, Trie
from xgr_stream.engine import item_tensors
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.types import NO_FILTER, ItemFilter

TAGS = ("red", "green", "blue")


@dataclass(frozen=True)
class Item:
    item_id: str
    sid: tuple[int, ...]
    tags: frozenset[str]
    popularity: int
    available: bool

    def passes(self, wanted: ItemFilter) -> bool:
        allowed = not wanted.allow or any(map(self.matches, wanted.allow))
        return (
            self.available
            and allowed
            and not any(map(self.matches, wanted.deny))
            and self.item_id not in wanted.exclude
        )

    def matches(self, entry: str | tuple[str, ...]) -> bool:
        return entry in self.tags if isinstance(entry, str) else all(tag in self.tags for tag in entry)


@st.composite
def item_lists(draw: st.DrawFn) -> list[Item]:
    """Few codes, so that many items share a SID or a prefix."""
    codes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    item = st.builds(
        Item,
        item_id=st.integers(0, 99).map(str),
        sid=st.tuples(*(st.integers(0, most - 1) for most in codes)),
        tags=st.frozensets(st.sampled_from(TAGS)),
        popularity=st.integers(0, 3),
        available=st.booleans(),
    )
    return draw(st.lists(item, min_size=1, max_size=24, unique_by=lambda item: item.item_id))


def filters(items: list[Item]) -> st.SearchStrategy[ItemFilter]:
    tag = st.sampled_from([*TAGS, *TAGS, "unknown tag"])
    tags = st.lists(tag | st.lists(tag, min_size=1, max_size=3), max_size=3).map(tuple)
    item_ids = st.lists(st.sampled_from([*(item.item_id for item in items), "unknown item"]), max_size=24).map(tuple)
    return st.builds(ItemFilter, exclude=item_ids, allow=tags, deny=tags)


def catalog_of(items: list[Item]) -> Catalog:
    return Catalog.from_table(
        {
            "item_id": [item.item_id for item in items],
            "sid": [item.sid for item in items],
            "tags": [sorted(item.tags) for item in items],
            "popularity": [item.popularity for item in items],
            "available": [item.available for item in items],
        }
    )


def in_row_order(items: list[Item]) -> list[Item]:
    return sorted(items, key=lambda item: (item.sid, item.item_id))


def walk(
    trie: Trie, depth: int = 0, node: int = 0, prefix: tuple[int, ...] = ()
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Every (depth, node, prefix), following children only."""
    yield depth, node, prefix
    if depth < trie.levels:
        for child in range(trie.child_starts[depth][node], trie.child_starts[depth][node + 1]):
            yield from walk(trie, depth + 1, child, (*prefix, int(trie.node_codes[depth][child])))


@examples(100)
@given(item_lists())
def test_the_trie_holds_every_sid_and_no_other(items: list[Item]) -> None:
    catalog = catalog_of(items)
    rows = in_row_order(items)
    assert list(catalog.item_ids) == [item.item_id for item in rows]
    for depth in range(catalog.levels + 1):
        prefixes = [prefix for at, _, prefix in walk(catalog.trie) if at == depth]
        assert prefixes == sorted({item.sid[:depth] for item in items})
        assert [node for at, node, _ in walk(catalog.trie) if at == depth] == list(range(catalog.trie.num_nodes(depth)))


@examples(100)
@given(item_lists())
def test_the_leaves_and_items_below_a_node_are_those_with_its_prefix(items: list[Item]) -> None:
    catalog = catalog_of(items)
    rows, leaves = in_row_order(items), sorted({item.sid for item in items})
    for depth, node, prefix in walk(catalog.trie):
        own = [leaf for leaf, sid in enumerate(leaves) if sid[:depth] == prefix]
        assert depth == 0 or (catalog.trie.paths(np.array(own, np.int32))[depth - 1] == node).all()
        below = slice(*catalog.trie.item_bounds(depth)[node : node + 2])
        assert rows[below] == [item for item in rows if item.sid[:depth] == prefix]


@examples(100)
@given(st.data())
def test_a_filter_equals_brute_force(data: st.DataObject) -> None:
    items = data.draw(item_lists())
    catalog = catalog_of(items)
    batch = data.draw(st.lists(filters(items), min_size=1, max_size=4))
    resolved = [catalog.resolve(wanted) for wanted in batch]
    with patch.object(item_tensors, "FEW", data.draw(st.sampled_from([0, 1 << 30]))):  # all that are legal, or all
        found = legal_nodes(LegalityTables(catalog, torch.device("cpu")), resolved)
    for wanted, own, nodes in zip(batch, resolved, found, strict=True):
        passing = [item for item in in_row_order(items) if item.passes(wanted)]
        assert own.leaves_any() == bool(passing)
        few = own.few(len(items) * len(TAGS))
        assert few is None if not wanted.allow else few.tolist() == [in_row_order(items).index(i) for i in passing]
        for depth, node, prefix in walk(catalog.trie):
            expected = any(item.sid[:depth] == prefix for item in passing)
            assert depth == 0 or nodes[depth - 1][node] == expected


@examples(100)
@given(st.data())
def test_items_at_leaves_are_those_that_pass_in_order(data: st.DataObject) -> None:
    items = data.draw(item_lists())
    catalog = catalog_of(items)
    wanted = data.draw(filters(items))
    leaf_sids = sorted({item.sid for item in items})
    leaves = data.draw(st.lists(st.integers(-1, len(leaf_sids) - 1), max_size=8))
    positions, rows = catalog.items_at(np.array(leaves, np.int32))
    allowed = catalog.resolve(wanted).allows(rows)
    expected = [
        (position, item.item_id)
        for position, leaf in enumerate(leaves)
        for item in in_row_order(items)
        if leaf >= 0 and item.sid == leaf_sids[leaf] and item.passes(wanted)
    ]
    found = zip(positions[allowed], rows[allowed], strict=True)
    assert [(position, catalog.item_ids[row]) for position, row in found] == expected


@examples(100)
@given(st.data())
def test_popular_items_are_the_most_popular_that_pass(data: st.DataObject) -> None:
    items = data.draw(item_lists())
    catalog = catalog_of(items)
    wanted, k = data.draw(filters(items)), data.draw(st.integers(1, 10))
    passing = [item for item in in_row_order(items) if item.passes(wanted)]
    expected = sorted(passing, key=lambda item: -item.popularity)[:k]
    few = data.draw(st.sampled_from([1, 4, 12, 1 << 16]))  # there are two ways, by how many items there are
    with patch("xgr_stream.catalog.popularity.FEW", few):
        found = catalog.popular(k, catalog.resolve(wanted))
    assert [catalog.item_ids[row] for row in found] == [item.item_id for item in expected]


@examples(100)
@given(st.data())
def test_any_sequence_of_flips_equals_a_rebuild(data: st.DataObject) -> None:
    items = data.draw(item_lists())
    catalog = catalog_of(items)
    tables = LegalityTables(catalog, torch.device("cpu"))
    item_ids = st.lists(st.sampled_from([item.item_id for item in items]), max_size=6)
    state = {item.item_id: item for item in items}
    for flipped, available in data.draw(st.lists(st.tuples(item_ids, st.booleans()), max_size=6)):
        tables.bring([catalog.resolve(data.draw(filters(items)))])  # the masks made so far must follow the flips
        catalog.set_available(flipped, available)
        state |= {i: Item(i, state[i].sid, state[i].tags, state[i].popularity, available) for i in flipped}
        catalog.check_integrity()
        if data.draw(st.booleans()):  # several changes at once, too
            tables.check_integrity()
    rebuilt = catalog_of(list(state.values()))
    assert catalog.version == rebuilt.version
    assert np.array_equal(catalog.available, rebuilt.available)
    for counts, expected in zip(catalog.live_counts(), rebuilt.live_counts(), strict=True):
        assert np.array_equal(counts, expected)
    wanted = data.draw(filters(items))
    assert_same_filter(catalog, rebuilt, wanted)
    fresh = legal_nodes(LegalityTables(rebuilt, torch.device("cpu")), [rebuilt.resolve(wanted)])
    assert_same_nodes(legal_nodes(tables, [catalog.resolve(wanted)]), fresh)
    tables.check_integrity()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("catalog") / "catalog.parquet"


@examples(100)
@given(data=st.data())
def test_a_saved_catalog_loads_as_it_was(path: Path, data: st.DataObject) -> None:
    items = data.draw(item_lists())
    catalog = catalog_of(items)
    catalog.set_available([item.item_id for item in items if item.popularity == 0], False)
    catalog.save(path)
    loaded = Catalog.load(path)
    assert (loaded.version, loaded.codes, loaded.item_ids) == (catalog.version, catalog.codes, catalog.item_ids)
    wanted = data.draw(filters(items))
    assert_same_filter(loaded, catalog, wanted)
    assert list(loaded.popular(5, loaded.resolve(NO_FILTER))) == list(catalog.popular(5, catalog.resolve(NO_FILTER)))


@examples(100)
@given(st.data())
def test_the_order_of_the_table_does_not_matter(data: st.DataObject) -> None:
    items = data.draw(item_lists())
    shuffled = data.draw(st.permutations(items))
    assert catalog_of(items).version == catalog_of(shuffled).version


def assert_same_filter(left: Catalog, right: Catalog, wanted: ItemFilter) -> None:
    one, other = left.resolve(wanted), right.resolve(wanted)
    assert (one.tags_key, one.leaves_any()) == (other.tags_key, other.leaves_any())
    assert np.array_equal(one.excluded, other.excluded)
    rows = np.arange(left.num_items, dtype=np.int32)
    assert np.array_equal(one.allows(rows), other.allows(rows))
