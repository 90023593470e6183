"""The catalog's items on the device: which are live, which tags they have, and masks of trie nodes made of that."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels import NodeMasks
from xgr_stream.catalog import Catalog
from xgr_stream.catalog.filters import TagsKey
from xgr_stream.catalog.tags import Together
from xgr_stream.engine.uploads import Uploads

FEW = 4
"""If fewer than one of so many items are legal, a CPU goes through those alone: 10,000 of a million in 1 ms, not 22."""


class ItemTensors:
    """Made of one catalog, with room behind them for a delta's and more."""

    def __init__(self, catalog: Catalog, uploads: Uploads, *, leaves: int, items: int, rows: int) -> None:
        """There is to be room for so many leaves, items and rows."""
        self._catalog = catalog
        self._tags = catalog.columns.tags
        self.live = uploads.tensor(catalog.available[: catalog.num_rows], rows)
        """[rows] bool"""
        self.items = uploads.tensor(catalog.trie.items, items)
        """[items] int32: rows in SID order."""
        self.starts = uploads.tensor(catalog.trie.item_starts, leaves + 1)
        """[leaves + 1] int32: where each leaf's items begin."""
        self.tagged = uploads.tensor(self._tags.rows)
        """[pairs of tag and item] int32: rows, tag by tag, sorted inside each. No captured graph reads them."""

    def move_to(self, other: ItemTensors) -> None:
        """Be where the other's are, but for `tagged`: what is there is the same."""
        self.live, self.items, self.starts = other.live, other.items, other.starts

    def allow(self, key: TagsKey | None, into: Tensor) -> None:
        """Write which items pass these tags, live or not; of a delta's, anything, unless no tag is asked for. [rows]
        bool"""
        allow, deny = (None, ()) if key is None else key
        into.fill_(allow is None)
        for allowed, entries in ((True, allow or ()), (False, deny)):
            for entry in self._tags.known(entries):
                rows, have = self._candidates(entry)
                if have is None:
                    into.index_fill_(0, rows, allowed)
                else:
                    before = into.index_select(0, rows)
                    into.index_copy_(0, rows, before | have if allowed else before & ~have)

    def nodes(self, tree: NodeMasks, mask: int) -> list[Tensor]:
        """Which nodes have an item below that is live and that the mask allows. Per level, [nodes] bool."""
        legal = tree.live & tree.allowed[mask]
        if legal.device.type == "cpu" and FEW * np.count_nonzero(legal.numpy()) < len(legal):
            return self._above(np.flatnonzero(legal.numpy()))
        bits = legal.index_select(0, tree.items)
        levels = []
        # child_starts[0] is where the children of the roots begin, which are in no mask.
        for starts in (tree.item_starts, *reversed(tree.child_starts[1:])):
            before = torch.zeros(len(bits) + 1, dtype=torch.int32, device=bits.device)
            torch.cumsum(bits, 0, dtype=torch.int32, out=before[1:])
            bounds = before.index_select(0, starts)
            bits = bounds[1:] > bounds[:-1]
            levels.append(bits)
        return levels[::-1]

    def _above(self, rows: NDArray[np.intp]) -> list[Tensor]:
        """`nodes`, if these items are all that are legal."""
        forest = self._catalog.forest
        levels = []
        for depth, nodes in enumerate(forest.paths(forest.leaves.take(rows)), start=1):
            bits = np.full(forest.num_nodes(depth), False)  # np.zeros holds the GIL
            bits[nodes] = True
            levels.append(torch.from_numpy(bits))
        return levels

    def _candidates(self, entry: Together) -> tuple[Tensor, Tensor | None]:
        """The rows of the items that have one of these tags [n], and which of them have all; None: all of them."""
        rarest, *others = sorted((self._rows(tag) for tag in entry), key=len)
        have = None
        for rows in others:
            place = torch.searchsorted(rows, rarest).clamp_(max=len(rows) - 1)
            found = rows.index_select(0, place) == rarest if len(rows) else torch.zeros_like(rarest, dtype=torch.bool)
            have = found if have is None else have & found
        return rarest.long(), have

    def _rows(self, tag: str) -> Tensor:
        return self.tagged[slice(*self._tags.span(tag))]
