"""A catalog and the delta of new and changed items beside it, as one: the delta's nodes, items and rows are numbered
behind the catalog's.

What is true of a trie is true of both: the children of a node, the leaves and the items below it are each one range.
Node order is SID order in each of the two, and depth 0 has two roots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.splice import bisect_each
from xgr_stream.catalog.tags import BoolArray, TagIndex, Together
from xgr_stream.catalog.trie import Int32Array, Trie, paths


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """An array and a short one behind it, of which neither is copied."""

    base: Int32Array
    behind: Int32Array

    def take(self, places: npt.NDArray[np.integer], out: Int32Array | None = None, mode: str = "clip") -> Int32Array:
        """The values at these places [n]; some value at one below 0. `out`: where to write them. `mode`: "clip"."""
        values = self.base.take(places, out=out, mode="clip")
        behind = np.flatnonzero(places >= len(self.base))
        if len(behind):
            values[behind] = self.behind.take(places[behind] - len(self.base))
        return values


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Two tries as one; see `Trie` for what the arrays are."""

    base: Trie
    delta: Trie
    node_codes: tuple[Joined, ...]
    child_starts: tuple[Joined, ...]
    parents: tuple[Joined, ...]
    item_starts: Joined
    items: Joined
    leaves: Joined
    in_base: tuple[Int32Array, ...]
    """[d]: of each of the delta's own nodes of depth d the base's node of the same prefix, -1 if there is none. Leaves
    are left out."""

    @classmethod
    def of(cls, base: Trie, delta: Trie) -> Forest:
        def behind(own: Int32Array, other: Int32Array, by: int) -> Joined:
            return Joined(own, other + np.int32(by))

        def starts(own: Int32Array, other: Int32Array) -> Joined:
            return behind(own, other[1:], int(own[-1]))  # its last is where the first of the delta begin

        return cls(
            base,
            delta,
            node_codes=tuple(map(Joined, base.node_codes, delta.node_codes)),
            child_starts=tuple(map(starts, base.child_starts, delta.child_starts)),
            parents=tuple(map(behind, base.parents, delta.parents, map(base.num_nodes, range(base.levels)))),
            item_starts=starts(base.item_starts, delta.item_starts),
            items=behind(base.items, delta.items, len(base.leaves)),
            leaves=behind(base.leaves, delta.leaves, base.num_leaves),
            in_base=_in_base(base, delta),
        )

    @property
    def num_leaves(self) -> int:
        return self.base.num_leaves + self.delta.num_leaves

    def num_nodes(self, depth: int) -> int:
        return self.base.num_nodes(depth) + self.delta.num_nodes(depth)

    @property
    def in_order(self) -> tuple[Int32Array, ...]:
        """Item rows in the order of their leaves, in parts."""
        return self.items.base, self.items.behind

    def paths(self, leaves: Int32Array) -> Int32Array:
        """As of a trie."""
        return paths(self.parents, leaves)


def _in_base(base: Trie, delta: Trie) -> tuple[Int32Array, ...]:
    """`Forest.in_base`: a binary search among the children of the node above."""
    found: list[Int32Array] = [np.zeros(1, np.int32)]
    for level in range(base.levels - 1):
        codes, starts, own = base.node_codes[level], base.child_starts[level], delta.node_codes[level]
        above = found[level].take(delta.parents[level])
        first = starts.take(above, mode="clip")
        last = np.where(above < 0, first, starts.take(above + 1))
        place = bisect_each(codes, first, last, own)
        there = place < last
        there[there] = codes[place[there]] == own[there]
        found.append(np.where(there, place, -1).astype(np.int32))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class JoinedTags:
    """The tags of both; see `TagIndex` for what is asked of it."""

    base: TagIndex
    delta: TagIndex

    def of_row(self, row: int) -> tuple[str, ...]:
        first = self.base.num_items
        return self.base.of_row(row) if row < first else self.delta.of_row(row - first)

    def known(self, entries: Iterable[Together]) -> frozenset[Together]:
        listed = list(entries)
        return self.base.known(listed) | self.delta.known(listed)

    def match(
        self, rows: npt.NDArray[np.integer], allow: Iterable[Together] | None, deny: Iterable[Together]
    ) -> BoolArray:
        behind = rows >= self.base.num_items
        matched = np.empty(len(rows), np.bool_)
        for index, own, first in ((self.base, ~behind, 0), (self.delta, behind, self.base.num_items)):
            known = None if allow is None else index.known(allow)
            matched[own] = index.match(rows[own] - first, known, index.known(deny))
        return matched

    def mask(self, allow: Iterable[Together] | None, deny: Iterable[Together]) -> BoolArray:
        return np.concatenate((self.base.mask(allow, deny), self.delta.mask(allow, deny)))

    def candidates(self, entry: Together) -> tuple[Int32Array, ...]:
        behind = (rows + np.int32(self.base.num_items) for rows in self.delta.candidates(entry))
        return *self.base.candidates(entry), *behind
