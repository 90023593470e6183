"""The trie of semantic IDs as flat arrays.

Depth 0 is the root, depth `levels` the leaves. Nodes of one depth are numbered in the order of their SID prefix, so
the children of a node, the leaves below it and the items below it are each one contiguous range, and node order is
SID order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Trie:
    """Never changes once built; the engine copies it to the device."""

    codes: tuple[int, ...]
    """Codes per level."""
    node_codes: tuple[Int32Array, ...]
    """[d]: code of each node of depth d + 1, [nodes of depth d + 1]; ascending among siblings."""
    child_starts: tuple[Int32Array, ...]
    """[d]: children of node p of depth d are nodes `child_starts[d][p] : child_starts[d][p + 1]` of depth d + 1."""
    parents: tuple[Int32Array, ...]
    """[d]: the parent, of depth d, of each node of depth d + 1."""
    item_starts: Int32Array
    """Items at leaf l are `items[item_starts[l] : item_starts[l + 1]]`, [leaves + 1]."""
    items: Int32Array
    """Item rows in the order of their SIDs, [items]."""
    leaves: Int32Array
    """The leaf of each item row, -1 for a row without a SID, [rows]."""

    @classmethod
    def from_sids(cls, sids: Int32Array, codes: tuple[int, ...], items: Int32Array, num_rows: int) -> Trie:
        """Build from the SIDs of `items` (item rows, of which there are `num_rows`), `[items, levels]`, sorted
        lexicographically."""
        num_items, levels = sids.shape
        first_rows: list[Int32Array] = [np.zeros(1, np.int32)]  # per depth: the first item row of each node
        begins_node = np.zeros(num_items, np.bool_)
        begins_node[0] = True
        for level in range(levels):
            begins_node[1:] |= sids[1:, level] != sids[:-1, level]
            first_rows.append(np.flatnonzero(begins_node).astype(np.int32))
        leaf_rows = first_rows[-1]
        item_starts = np.append(leaf_rows, np.int32(num_items))
        leaves = np.full(num_rows, -1, np.int32)
        leaves[items] = np.repeat(np.arange(len(leaf_rows), dtype=np.int32), np.diff(item_starts))
        child_starts = tuple(_starts(first_rows[d], first_rows[d + 1]) for d in range(levels))
        return cls(
            codes=codes,
            node_codes=tuple(sids[first_rows[level + 1], level] for level in range(levels)),
            child_starts=child_starts,
            parents=tuple(
                np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts)) for starts in child_starts
            ),
            item_starts=item_starts,
            items=items,
            leaves=leaves,
        )

    @property
    def levels(self) -> int:
        return len(self.codes)

    @property
    def num_leaves(self) -> int:
        return len(self.item_starts) - 1

    def num_nodes(self, depth: int) -> int:
        return 1 if depth == 0 else len(self.node_codes[depth - 1])

    def paths(self, leaves: Int32Array) -> Int32Array:
        """[d]: the node of depth d + 1 above each leaf, [levels, leaves]; the last are the leaves themselves."""
        nodes = np.empty((self.levels, len(leaves)), np.int32)
        nodes[-1] = leaves
        for depth in range(self.levels - 1, 0, -1):
            nodes[depth - 1] = self.parents[depth].take(nodes[depth])
        return nodes

    def item_bounds(self, depth: int) -> Int32Array:
        """Items below node p of `depth` are `items[bounds[p] : bounds[p + 1]]`, [nodes + 1]. Takes a while."""
        bounds = self.item_starts
        for starts in reversed(self.child_starts[depth:]):
            bounds = bounds[starts]
        return bounds


def _starts(parent_rows: Int32Array, child_rows: Int32Array) -> Int32Array:
    """Where each parent's run of children begins, and where the last one ends: [parents + 1]."""
    starts = np.searchsorted(child_rows, parent_rows)
    return np.append(starts, len(child_rows)).astype(np.int32)
