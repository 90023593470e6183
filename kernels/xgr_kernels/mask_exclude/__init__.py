"""Nodes that a request's exclusions leave without a legal item."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xgr_kernels.checks import check_shape
from xgr_kernels.dispatch import implementation
from xgr_kernels.mask_flip import check_flips
from xgr_kernels.node_masks import NodeMasks

__all__ = ["NO_NODE", "mask_exclude"]

NO_NODE = 0x7FFFFFFF
"""What is at least this, less the number of a request's exclusions, is no node."""


def mask_exclude(
    tree: NodeMasks, excluded: Tensor, *, starts: Tensor, mask_index: Tensor, emptied: Sequence[Tensor]
) -> None:
    """Find the nodes that are legal for a request's mask and all of whose legal items it excludes, for `beam_select`.

    From the leaves up: a node is emptied if as many of its legal children are as it has, so that looking ends one child
    beyond those. Without a host synchronisation.

    excluded: [1 + levels, n] int32: item rows, in the order of their leaves inside a request and each once there, legal
    or not; then per level the node above each. starts: [requests + 1] int32, request i has those at starts[i] :
    starts[i + 1]; mask_index: [requests] int32, its row of the masks. emptied: per level [at least n] int32, written:
    at the same places each request's emptied nodes of the level, sorted, and behind them numbers that ascend too and
    are no node's. Raises ValueError on arguments that do not fit each other.
    """
    check_flips("excluded", excluded, 1 + tree.levels)
    check_shape("mask_index", mask_index, (None,))
    check_shape("starts", starts, (mask_index.shape[0] + 1,))
    if starts.dtype != torch.int32 or mask_index.dtype != torch.int32:
        raise ValueError(f"starts and mask_index must be int32, not {starts.dtype} and {mask_index.dtype}")
    if len(emptied) != tree.levels:
        raise ValueError(f"emptied must be of {tree.levels} levels, not {len(emptied)}")
    for level, out in enumerate(emptied):
        if out.dtype != torch.int32 or out.shape[0] < excluded.shape[1]:
            raise ValueError(
                f"emptied of level {level} must be int32 with room for {excluded.shape[1]}, not {out.dtype} "
                f"of {list(out.shape)}"
            )
    implementation("mask_exclude", excluded)(tree, excluded, starts=starts, mask_index=mask_index, emptied=emptied)
