"""The trie of semantic IDs as flat arrays.

Depth 0 is the root, depth `levels` the leaves. Nodes of one depth are numbered in the order of their SID prefix, so
the children of a node, the leaves below it and the items below it are each one contiguous range, and node order is
SID order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


class Takes(Protocol):
    """What values can be taken from, as from an array."""

    def take(self, places: Int32Array, /, *, out: Int32Array, mode: Literal["clip"]) -> Int32Array: ...


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
    def from_sids(cls, sids: Int32Array, codes: tuple[int, ...], items: Int32Array) -> Trie:
        """Build from the SIDs [rows, levels] and `items`, the rows that have one, in SID order."""
        (num_rows, levels), num_items = sids.shape, len(items)
        first_rows: Int32Array = np.zeros(1, np.int32)  # of a depth: the first item of each node
        node_of: Int32Array = np.zeros(num_items, np.int32)  # of a depth: the node above each item
        begins_node = np.zeros(num_items, np.bool_)
        begins_node[0] = True
        node_codes, child_starts, parents = [], [], []
        for level in range(levels):
            own = sids[:, level].take(items)
            begins_node[1:] |= own[1:] != own[:-1]
            first_of_children = np.flatnonzero(begins_node).astype(np.int32)
            parents.append(node_of.take(first_of_children))
            node_of = np.cumsum(begins_node, dtype=np.int32)
            node_of -= 1
            node_codes.append(own.take(first_of_children))
            child_starts.append(np.append(node_of.take(first_rows), np.int32(len(first_of_children))))
            first_rows = first_of_children
        leaves = np.full(num_rows, -1, np.int32)
        leaves[items] = node_of
        return cls(
            codes=codes,
            node_codes=tuple(node_codes),
            child_starts=tuple(child_starts),
            parents=tuple(parents),
            item_starts=np.append(first_rows, np.int32(num_items)),
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
        return paths(self.parents, leaves)

    @property
    def in_order(self) -> tuple[Int32Array, ...]:
        """Item rows in the order of their SIDs, in parts."""
        return (self.items,)

    def item_bounds(self, depth: int) -> Int32Array:
        """Items below node p of `depth` are `items[bounds[p] : bounds[p + 1]]`, [nodes + 1]. Takes a while."""
        bounds = self.item_starts
        for starts in reversed(self.child_starts[depth:]):
            bounds = bounds[starts]
        return bounds


def paths(parents: Sequence[Takes], leaves: Int32Array) -> Int32Array:
    """`Trie.paths`, of these `Trie.parents`."""
    nodes = np.empty((len(parents), len(leaves)), np.int32)
    nodes[-1] = leaves
    for depth in range(len(parents) - 1, 0, -1):
        # "clip" (nothing is out of bounds) writes to where it is told; "raise" first elsewhere.
        parents[depth].take(nodes[depth], out=nodes[depth - 1], mode="clip")
    return nodes
