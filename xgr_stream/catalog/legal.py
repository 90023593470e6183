"""A set of items, and how many of its members stand below each trie node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.trie import Int32Array, Trie
from xgr_stream.errors import CatalogError

BoolArray = npt.NDArray[np.bool_]
Above = tuple[Int32Array, ...]
"""[d]: the node of depth d above each of some rows, [rows]."""


def nodes_above(trie: Trie, rows: Int32Array) -> Above:
    """Fastest for rows in SID order."""
    leaves = trie.leaves[rows]
    return tuple(trie.node_of(depth, leaves) for depth in range(trie.levels + 1))


class LegalItems:
    """Items that may be returned. A node is legal while at least one of them is below it.

    `flip` changes the arrays in place, in O(levels) per item; whoever copied them (the engine, to its device) must
    copy what changed when the catalog's revision has moved.
    """

    def __init__(self, trie: Trie, items: BoolArray) -> None:
        """Owns `items`, [items], from here on."""
        self._trie = trie
        self.items = items
        """[items]: whether the item is in the set."""
        self.counts = _count(trie, items)
        """[d]: members below each node of depth d, [nodes of depth d]."""
        self.node_masks: tuple[BoolArray, ...] = tuple(counts > 0 for counts in self.counts[1:])
        """[d]: whether each node of depth d + 1 is legal, [nodes of depth d + 1]."""

    @property
    def num_items(self) -> int:
        return int(self.counts[0][0])

    def flip(self, rows: Int32Array, above: Above, present: bool) -> None:
        """Put items into the set or take them out. Mutates. `rows` must not repeat; `above` as `nodes_above` gives."""
        moving = self.items[rows] != present
        if not moving.all():
            rows, above = rows[moving], tuple(nodes[moving] for nodes in above)
        self.items[rows] = present
        change = np.int32(1 if present else -1)
        for depth, (counts, nodes) in enumerate(zip(self.counts, above, strict=True)):
            np.add.at(counts, nodes, change)
            if depth > 0:
                self.node_masks[depth - 1][nodes] = counts[nodes] > 0

    def check_integrity(self) -> None:
        """Raise `CatalogError` if the counts or masks are not what a rebuild gives."""
        for depth, (counts, expected) in enumerate(zip(self.counts, _count(self._trie, self.items), strict=True)):
            wrong = np.flatnonzero(counts != expected)
            if len(wrong):
                node = wrong[0]
                raise CatalogError(
                    f"live count of node {node} at depth {depth} is {counts[node]}, not {expected[node]}"
                )
            if depth > 0 and not np.array_equal(self.node_masks[depth - 1], counts > 0):
                raise CatalogError(f"node mask at depth {depth} differs from live count > 0")


def _count(trie: Trie, items: BoolArray) -> tuple[Int32Array, ...]:
    before = np.zeros(len(trie.items) + 1, np.int32)
    np.cumsum(items[trie.items], out=before[1:])
    return tuple(np.diff(before[trie.item_bounds(depth)]) for depth in range(trie.levels + 1))
