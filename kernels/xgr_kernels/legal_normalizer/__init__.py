"""Log-sum-exps over the legal codes: what scores over these alone are normalised by."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.checks import check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["legal_normalizer"]


def legal_normalizer(
    logits: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
    child_starts: Tensor,
    child_codes: Tensor,
    node_masks: Tensor,
    mask_index: Tensor,
    emptied_starts: Tensor,
    emptied_nodes: Tensor,
    others: Tensor,
) -> Tensor:
    """The log-sum-exp of each row's logits over the codes of its prefix's legal children: `beam_select`'s
    `log_normalizer` for scores over legal codes. [rows] float32; -inf where there are none, and for dead beams.

    A prefix may be two nodes, one of either of two tries in the same arrays. Its children are those of both, each
    code counted once; a row needs neither the other node's row nor that there is one.

    logits: [rows, codes], of this level; nodes: [rows] int32, the node each beam stands at, -1 for a dead one; rows
    behind the last request's may be anything. others: [2, pairs + 1] int32: the nodes whose prefix is the other trie's
    too, ascending, and the other trie's; behind them numbers that are no node's, one at least. The second trie's nodes
    are numbered behind the first's. The rest as in `beam_select`. Raises ValueError on arguments that do not fit each
    other.
    """
    rows = logits.shape[0]
    check_shape("logits", logits, (rows, None))
    check_shape("nodes", nodes, (rows,))
    check_shape("mask_index", mask_index, (None,))
    requests = mask_index.shape[0]
    check_shape("row_starts", row_starts, (requests + 1,))
    check_shape("emptied_starts", emptied_starts, (requests + 1,))
    check_shape("child_starts", child_starts, (None,))
    check_shape("child_codes", child_codes, (None,))
    check_shape("node_masks", node_masks, (None, child_codes.shape[0]))
    check_shape("others", others, (2, None))
    if others.shape[1] < 1:
        raise ValueError("others must have 1 column at least, not 0")
    integers = (nodes, row_starts, child_starts, child_codes, emptied_starts, emptied_nodes, others)
    if any(tensor.dtype != torch.int32 for tensor in integers):
        raise ValueError("nodes, row_starts, child_starts, child_codes, emptied nodes and others must be int32")
    if node_masks.dtype != torch.bool:
        raise ValueError(f"node_masks must be bool, not {node_masks.dtype}")
    normalizers: Tensor = implementation("legal_normalizer", logits)(
        logits,
        nodes,
        row_starts=row_starts,
        child_starts=child_starts,
        child_codes=child_codes,
        node_masks=node_masks,
        mask_index=mask_index,
        emptied_starts=emptied_starts,
        emptied_nodes=emptied_nodes,
        others=others,
    )
    return normalizers
