"""mask_flip in plain torch, level by level from the leaves up."""

from __future__ import annotations

from torch import Tensor

from xgr_kernels.node_masks import NodeMasks
from xgr_kernels.ranges import count_in_ranges


def mask_flip(tree: NodeMasks, flips: Tensor) -> None:
    rows, present = flips[0].long(), flips[1] != 0
    tree.live[rows] = present
    mask, flip = tree.allowed[:, rows].nonzero(as_tuple=True)  # a mask that does not allow an item stays as it is
    legal = present[flip]
    for level in reversed(range(tree.levels)):
        node = flips[2 + level].long()[flip]
        unsure = (~legal).nonzero()[:, 0]
        if len(unsure):
            found = count_in_ranges(tree, level, mask[unsure], node[unsure], 0)
            legal[unsure] = found > 0
        tree.masks[level][mask, node] = legal
