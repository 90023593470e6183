"""Nodes that a request's exclusions leave without a legal item."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xgr_kernels.checks import check_shape
from xgr_kernels.dispatch import implementation
from xgr_kernels.node_masks import NodeMasks

__all__ = ["NO_NODE", "mask_exclude"]

NO_NODE = 0x7FFFFFFF
"""What is at least this, less the number of a request's exclusions, is no node."""


def mask_exclude(
    tree: NodeMasks,
    excluded: Tensor,
    *,
    starts: Tensor,
    mask_index: Tensor,
    num_nodes: Tensor,
    emptied: Sequence[Tensor],
) -> None:
    """Find the nodes that are legal for a request's mask and all of whose legal items it excludes, for `beam_select`.

    From the leaves up: a node is emptied if as many of its legal children are as it has, so that looking ends one child
    beyond those. Without a host synchronisation, and of what a batch brings only memory is read, so that it may be
    captured.

    excluded: [at least n] int64: `leaf << 32 | row` of each item, ascending inside a request and each once there, legal
    or not. starts: [requests + 1] int32, request i has those at starts[i] : starts[i + 1], the last ending at n;
    mask_index: [requests] int32, its row of the masks. num_nodes: [levels] int32: nodes of each level, behind which the
    tree's arrays may hold anything. emptied: per level [as `excluded`] int32, written: at the same places each
    request's emptied nodes of the level, sorted, and behind them numbers that ascend too and are no node's. Raises
    ValueError on arguments that do not fit each other.
    """
    check_shape("excluded", excluded, (None,))
    if excluded.dtype != torch.int64 or not excluded.is_contiguous():
        raise ValueError(f"excluded must be contiguous int64, not {excluded.dtype} of strides {excluded.stride()}")
    check_shape("mask_index", mask_index, (None,))
    check_shape("starts", starts, (mask_index.shape[0] + 1,))
    check_shape("num_nodes", num_nodes, (tree.levels,))
    dtypes = starts.dtype, mask_index.dtype, num_nodes.dtype
    if set(dtypes) != {torch.int32}:
        raise ValueError("starts, mask_index and num_nodes must be int32, not " + ", ".join(map(str, dtypes)))
    if len(emptied) != tree.levels:
        raise ValueError(f"emptied must be of {tree.levels} levels, not {len(emptied)}")
    for level, out in enumerate(emptied):
        if out.dtype != torch.int32 or out.shape[0] < excluded.shape[0]:
            raise ValueError(
                f"emptied of level {level} must be int32 with room for {excluded.shape[0]}, not {out.dtype} "
                f"of {list(out.shape)}"
            )
    implementation("mask_exclude", excluded)(
        tree, excluded, starts=starts, mask_index=mask_index, num_nodes=num_nodes, emptied=emptied
    )
