"""Node masks made right again above items that came or went."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.checks import check_shape
from xgr_kernels.dispatch import implementation
from xgr_kernels.node_masks import NodeMasks

__all__ = ["FEW_FLIPS", "mask_flip"]

FEW_FLIPS = 4
"""That the kernel does in one warp: nothing in it waits for another, and it looks at 128 children of a node at once."""


def mask_flip(tree: NodeMasks, flips: Tensor) -> None:
    """Let items be live or not, in `tree.live`, and the nodes above them be legal or not accordingly, in each of
    `tree.masks`.

    A node that an item came to is legal at once. One that an item went from is looked at anew if the node below it on
    the way to the item is no longer legal: until a legal child is found among its own. All masks in one launch, without
    a host synchronisation.

    flips: [2 + levels, n] int32: item rows; 0 or 1, whether they are live now; then per level the node above each, of
    the last level its leaf. A row may repeat, with equal values. `tree` holds what was right before. Raises ValueError
    on arguments that do not fit each other.
    """
    check_shape("flips", flips, (2 + tree.levels, None))
    if flips.dtype != torch.int32 or not flips.is_contiguous():
        raise ValueError(f"flips must be contiguous int32, not {flips.dtype} of strides {flips.stride()}")
    implementation("mask_flip", flips)(tree, flips)
