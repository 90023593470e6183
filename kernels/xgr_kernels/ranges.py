"""Legal items and children below nodes, counted as far as it matters: for the references."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.node_masks import NodeMasks

CHUNK = 16
"""Looked at of each node at first, and four times as many each time after that."""


def count_in_ranges(tree: NodeMasks, level: int, mask: Tensor, node: Tensor, most: Tensor | int) -> Tensor:
    """How many legal children, at the leaves items, each of these nodes [n] of a level has in its mask [n]; of one with
    more than `most` ([n]), some number above that. [n] int64"""
    starts = tree.item_starts if level == tree.levels - 1 else tree.child_starts[level + 1]
    at, last = starts[node].long(), starts[node + 1].long()
    counts = torch.zeros_like(at)
    open_ = (at < last).nonzero()[:, 0]
    chunk = CHUNK
    while len(open_):
        place = at[open_, None] + torch.arange(chunk, device=at.device)
        inside = place < last[open_, None]
        place = torch.where(inside, place, at[open_, None])
        if level == tree.levels - 1:
            row = tree.items[place].long()
            legal = tree.live[row] & tree.allowed[mask[open_, None], row]
        else:
            legal = tree.masks[level + 1][mask[open_, None], place]
        counts[open_] += (legal & inside).sum(1)
        at[open_] += chunk
        open_ = ((at < last) & (counts <= most)).nonzero()[:, 0]
        chunk *= 4
    return counts
