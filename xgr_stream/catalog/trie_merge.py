"""The next trie, out of the current one and the items that change."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from xgr_stream.catalog.beside import none_of, pieces
from xgr_stream.catalog.splice import NO_PLACES, Places, bisect_each, moved, places_behind, spliced
from xgr_stream.catalog.tags import BoolArray
from xgr_stream.catalog.trie import Int32Array, Trie


class _Depth(NamedTuple):
    """What changes among the nodes of one depth, as the current trie numbers them. Behind the leaves come the items."""

    gone: Places
    at: Places
    """The node above each item that comes, or the one before which there is to be one. [items that come]"""
    found: BoolArray
    """Whether that node is there. [items that come]"""
    new: Places
    """Of the items that come, the first of each node that is not there."""

    @property
    def new_at(self) -> Places:
        return self.at[self.new]

    def numbers(self) -> Places:
        """The node above each item that comes, as the next trie numbers them."""
        numbers = moved(self.at, self.gone, self.new_at)
        if self.found.all():
            return numbers
        last_new = self.new.searchsorted(np.arange(len(self.at)), side="right") - 1
        return np.where(self.found, numbers, places_behind(self.gone, self.new_at)[last_new])


def changed_trie(trie: Trie, sids: Int32Array, codes: tuple[int, ...], go: Int32Array, come: Int32Array) -> Trie:
    """What `Trie.from_sids` makes of `sids` [rows, levels] if the item rows `go` leave their places and then `come`,
    in any order, take those that `sids` says: the last of their leaves, in the order of `come`."""
    own = sids.take(come, axis=0)
    ascending = np.lexsort(own.T[::-1])
    come, own = come.take(ascending), own.take(ascending, axis=0)
    starts = (*trie.child_starts, trie.item_starts)
    depths = _depths(trie, starts, own, go)
    numbers = [depth.numbers() for depth in depths]
    node_codes, parents, next_starts = [], [], []
    for level, (node, child) in enumerate(pairwise(depths)):
        next_starts.append(
            spliced(
                starts[level],
                node.gone,
                node.new_at,
                numbers[level + 1][node.new],
                up=(node.at + node.found)[child.new],
                down=_above(trie, level, child.gone) + 1,
            )
        )
        if level < trie.levels:
            node_codes.append(spliced(trie.node_codes[level], child.gone, child.new_at, own[child.new, level]))
            parents.append(
                spliced(
                    trie.parents[level],
                    child.gone,
                    child.new_at,
                    numbers[level][child.new],
                    up=starts[level][node.new_at],
                    down=starts[level][node.gone + 1],
                )
            )
    leaves = np.empty(len(sids), np.int32)
    _renumber(trie, depths[-2], leaves)
    leaves[len(trie.leaves) :] = -1
    leaves[go] = -1
    leaves[come] = numbers[-2]
    return Trie(
        codes=codes,
        node_codes=tuple(node_codes),
        child_starts=tuple(next_starts[:-1]),
        parents=tuple(parents),
        item_starts=next_starts[-1],
        items=spliced(trie.items, depths[-1].gone, depths[-1].at, come),
        leaves=leaves,
    )


def _depths(trie: Trie, starts: tuple[Int32Array, ...], own: Int32Array, go: Int32Array) -> list[_Depth]:
    """[d]: of depth d, the items behind the leaves. `own`: the semantic IDs that come, in order."""
    at: list[Places] = [np.zeros(len(own), np.int64)]
    found: list[BoolArray] = [np.full(len(own), True)]
    begins = np.arange(len(own)) == 0
    new: list[Places] = [NO_PLACES]
    for level, codes in enumerate(own.T):
        first, last = starts[level][at[-1]], starts[level][at[-1] + found[-1]]
        place = bisect_each(trie.node_codes[level], first, last, codes)
        there = place < last
        there[there] = trie.node_codes[level][place[there]] == codes[there]
        begins[1:] |= codes[1:] != codes[:-1]
        at.append(place)
        found.append(there)
        new.append(np.flatnonzero(begins & ~there))
    at.append(trie.item_starts[at[-1] + found[-1]].astype(np.int64))
    found.append(none_of(len(own)))
    new.append(np.arange(len(own)))

    gone: list[Places] = [NO_PLACES]
    if len(go):
        going = none_of(len(trie.leaves))
        going[go] = True
        gone[0] = np.flatnonzero(going.take(trie.items))
    for depth in range(trie.levels, 0, -1):
        nodes = _above(trie, depth, gone[0])
        first_of = np.flatnonzero(np.diff(nodes, prepend=-1))
        above: Int32Array = nodes[first_of]
        emptied = np.diff(first_of, append=len(gone[0])) == starts[depth][above + 1] - starts[depth][above]
        children = new[depth + 1]
        entered = at[depth][children[found[depth][children]]]
        emptied &= entered.searchsorted(above) == entered.searchsorted(above, side="right")
        gone.insert(0, above[emptied])
    return [_Depth(*parts) for parts in zip((NO_PLACES, *gone), at, found, new, strict=True)]


def _above(trie: Trie, depth: int, children: Places) -> Int32Array:
    """The nodes of this depth that these nodes of the next one, or items, are below."""
    if depth == trie.levels:
        return trie.leaves.take(trie.items.take(children))
    return trie.parents[depth].take(children)


def _renumber(trie: Trie, leaf: _Depth, leaves: Int32Array) -> None:
    """Write the leaf of each row of `trie`, as the next one numbers them; anything where that is not there any more."""
    numbers: Int32Array = np.arange(trie.num_leaves + 1, dtype=np.int32)
    numbers = spliced(numbers, NO_PLACES, NO_PLACES, NO_PLACES, up=leaf.new_at, down=leaf.gone + 1)
    numbers[-1] = -1  # of a row without a semantic ID
    for place in pieces(len(trie.leaves)):  # all at once would first be all of it in 64 bits
        numbers.take(trie.leaves[place], out=leaves[: len(trie.leaves)][place], mode="wrap")
