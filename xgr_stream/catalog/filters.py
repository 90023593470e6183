"""Exact filters: which items and nodes a request may use.

Tags are turned into the set of legal items once and kept (`LegalItems`, with its node masks); exclusions, which
differ from request to request, touch only the nodes above them: a node whose every legal item is excluded is emptied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xgr_stream.catalog.legal import BoolArray, LegalItems, nodes_above
from xgr_stream.catalog.tags import TagIndex, Together
from xgr_stream.catalog.trie import Int32Array, Trie
from xgr_stream.errors import CatalogError
from xgr_stream.types import NO_FILTER, ItemFilter, Tags

MAX_TAG_FILTERS = 16
"""Tag combinations kept, least recently used dropped: 17 MB and 20 ms each at 1.5 million items."""

TagsKey = tuple[tuple[Together, ...] | None, tuple[Together, ...]]
"""(allow, deny), the entries of each sorted; allow None: everything."""


@dataclass(frozen=True, eq=False)
class ResolvedFilter:
    """What an `ItemFilter` means in one catalog. Valid until the catalog's next `set_available`; its arrays belong to
    the catalog and must not be written to."""

    tags_key: TagsKey | None
    """Names the node masks; None: no tag is asked for."""
    node_masks: tuple[BoolArray, ...] | None
    """[d]: nodes of depth d + 1 with a live, tag-allowed item below; None: the live counts decide."""
    emptied: tuple[Int32Array, ...]
    """[d]: sorted nodes of depth d + 1 that are legal by tags but whose every such item is excluded."""
    num_items: int
    """Items that may be returned."""
    items: BoolArray
    """[items]: live and tag-allowed."""
    excluded: Int32Array
    """Sorted item rows that are live and tag-allowed, but excluded."""

    def allows(self, rows: Int32Array) -> BoolArray:
        """Whether each item row may be returned."""
        allowed = self.items[rows]
        if len(self.excluded):
            slots = np.searchsorted(self.excluded, rows)
            slots[slots == len(self.excluded)] = 0
            allowed &= self.excluded[slots] != rows
        return allowed


class _TaggedItems(NamedTuple):
    allowed: BoolArray
    """[items]: passes the tags, live or not."""
    legal: LegalItems


class FilterResolver:
    """Resolves filters, keeping the legal items of recent tag combinations. Not thread-safe."""

    def __init__(self, trie: Trie, tags: TagIndex, live: LegalItems) -> None:
        self._trie = trie
        self._tags = tags
        self._live = live
        self._by_tags: OrderedDict[TagsKey, _TaggedItems] = OrderedDict()
        self._unfiltered: ResolvedFilter | None = None

    def resolve(self, item_filter: ItemFilter, excluded_rows: Int32Array) -> ResolvedFilter:
        """`excluded_rows`: the rows of `item_filter.exclude` that the catalog knows, in any order."""
        if item_filter is NO_FILTER or item_filter == NO_FILTER:  # nearly always the first, 0.3 µs sooner
            if self._unfiltered is None:
                self._unfiltered = self._resolve(item_filter, excluded_rows)
            return self._unfiltered
        return self._resolve(item_filter, excluded_rows)

    def _resolve(self, item_filter: ItemFilter, excluded_rows: Int32Array) -> ResolvedFilter:
        return self._leaving(self._tags_key(item_filter), excluded_rows)

    def without(self, resolved: ResolvedFilter, rows: Int32Array) -> ResolvedFilter:
        """The same with these rows, in any order, excluded too."""
        return self._leaving(resolved.tags_key, np.concatenate((resolved.excluded, rows)))

    def _leaving(self, key: TagsKey | None, excluded_rows: Int32Array) -> ResolvedFilter:
        legal = self._live if key is None else self._legal_by_tags(key)
        excluded = np.unique(excluded_rows)
        excluded = excluded[legal.items[excluded]]
        return ResolvedFilter(
            tags_key=key,
            node_masks=None if key is None else legal.node_masks,
            emptied=self._emptied(legal, excluded),
            num_items=legal.num_items - len(excluded),
            items=legal.items,
            excluded=excluded,
        )

    def flip(self, rows: Int32Array, available: bool) -> None:
        """Mutates the live items and every kept tag combination."""
        above = nodes_above(self._trie, rows)
        self._live.flip(rows, above, available)
        self._unfiltered = None
        for tagged in self._by_tags.values():
            allowed = tagged.allowed[rows]
            tagged.legal.flip(rows[allowed], tuple(nodes[allowed] for nodes in above), available)

    @property
    def kept(self) -> tuple[TagsKey, ...]:
        """The tag combinations that are kept, the least recently used first."""
        return tuple(self._by_tags)

    def keep(self, keys: Iterable[TagsKey]) -> None:
        """Have the legal items of these tag combinations at hand, before anybody asks for them. Tags that are no
        longer known are passed over."""
        for allow, deny in keys:
            self._legal_by_tags((None if allow is None else self._known(allow), self._known(deny)))

    def node_masks(self, key: TagsKey | None) -> tuple[BoolArray, ...] | None:
        """The node masks of a tag combination as they are now (None: of all live items); None if it isn't kept."""
        if key is None:
            return self._live.node_masks
        tagged = self._by_tags.get(key)
        return None if tagged is None else tagged.legal.node_masks

    def check_integrity(self) -> None:
        self._live.check_integrity()
        for tagged in self._by_tags.values():
            tagged.legal.check_integrity()
            if not np.array_equal(tagged.legal.items, tagged.allowed & self._live.items):
                raise CatalogError("the kept items of a tag filter are not its live, allowed items")

    def _tags_key(self, item_filter: ItemFilter) -> TagsKey | None:
        if not item_filter.allow and not item_filter.deny:
            return None
        deny = self._known(item_filter.deny)
        if item_filter.allow:
            return self._known(item_filter.allow), deny
        return (None, deny) if deny else None

    def _known(self, entries: Iterable[Tags]) -> tuple[Together, ...]:
        """In one order, without those that no item can match."""
        return tuple(sorted(self._tags.known((e,) if isinstance(e, str) else tuple(e) for e in entries)))

    def _legal_by_tags(self, key: TagsKey) -> LegalItems:
        tagged = self._by_tags.pop(key, None)
        if tagged is None:
            allowed = self._tags.mask(*key)
            tagged = _TaggedItems(allowed, LegalItems(self._trie, self._live.items & allowed))
            if len(self._by_tags) >= MAX_TAG_FILTERS:
                self._by_tags.popitem(last=False)
        self._by_tags[key] = tagged
        return tagged.legal

    def _emptied(self, legal: LegalItems, excluded: Int32Array) -> tuple[Int32Array, ...]:
        if not len(excluded):  # most requests: 5 µs instead of 65
            return (excluded,) * self._trie.levels
        leaves = np.sort(self._trie.leaves[excluded])
        emptied = []
        for depth in range(1, self._trie.levels + 1):
            nodes, num_excluded = np.unique(self._trie.node_of(depth, leaves), return_counts=True)
            emptied.append(nodes[legal.counts[depth][nodes] == num_excluded])
        return tuple(emptied)
