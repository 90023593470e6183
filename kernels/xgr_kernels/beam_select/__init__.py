"""The best beams of the next level: legal children only, exact, stopping early."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xgr_kernels.checks import check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["BeamSelection", "beam_select"]


class BeamSelection(NamedTuple):
    """The chosen beams, request i owning out_starts[i] : out_starts[i + 1], best first; missing ones at the end."""

    scores: Tensor
    """[out] float32, accumulated; -inf where a request has fewer candidates than beams."""
    parents: Tensor
    """[out] int32, the input row a beam continues; a missing beam's is its request's first row."""
    nodes: Tensor
    """[out] int32, the trie node reached, of the next depth; -1 for a missing beam."""
    beams_scanned: Tensor
    """[requests] int32, input rows whose children were looked at; their bounds spared the other live ones. On a GPU
    the bounds come of a first look at all legal children, and this counts the second."""
    children_kept: Tensor
    """[requests] int32, candidates that were not below the bound found on the way."""


def beam_select(
    logits: Tensor,
    scores: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
    out_starts: Tensor,
    child_starts: Tensor,
    child_codes: Tensor,
    node_masks: Tensor,
    mask_index: Tensor,
    emptied_starts: Tensor,
    emptied_nodes: Tensor,
    log_normalizer: Tensor | None = None,
    num_out: int | None = None,
    early_stop: bool = True,
) -> BeamSelection:
    """Extend each request's beams by one level and keep the best, by score descending, then node ascending.

    A candidate's score is its beam's plus logits[row, code] less the row's log-normalizer.

    logits: [rows, codes], of this level, finite; scores: [rows] float32, -inf for a dead beam; nodes: [rows] int32, the
    node each beam stands at (ignored where dead; those of a request's live beams differ). row_starts, out_starts:
    [requests + 1] int32, beams in and beams out; rows behind the last request's are not read, outputs behind them
    become missing beams with parent 0.
    child_starts: [parents + 1] int32; child_codes: [children] int32, ascending inside a parent: the children of node p
    are the nodes child_starts[p] : child_starts[p + 1] of the next depth.
    node_masks: [masks, children] bool, what is legal; mask_index: [requests], the row of it that a request uses.
    emptied_starts: [requests + 1] int32; emptied_nodes: int32, ascending inside a request, of which
    [: emptied_starts[-1]] is used: nodes not legal for it alone, and numbers that are no node's.
    log_normalizer: [rows], by default the log-sum-exp over all codes; anything where dead or without a legal child.
    num_out: outputs, at least out_starts[-1], which is read back from the device, a host synchronisation, where it is
    not given. early_stop: whether beams whose bound is too low are spared; the answer is the same. Raises ValueError on
    arguments that do not fit each other.
    """
    rows = logits.shape[0]
    check_shape("logits", logits, (rows, None))
    check_shape("scores", scores, (rows,))
    check_shape("nodes", nodes, (rows,))
    check_shape("mask_index", mask_index, (None,))
    requests = mask_index.shape[0]
    for name, starts in (("row_starts", row_starts), ("out_starts", out_starts), ("emptied_starts", emptied_starts)):
        check_shape(name, starts, (requests + 1,))
    check_shape("child_starts", child_starts, (None,))
    check_shape("child_codes", child_codes, (None,))
    check_shape("node_masks", node_masks, (None, child_codes.shape[0]))
    if scores.dtype != torch.float32:
        raise ValueError(f"scores must be float32, not {scores.dtype}")
    integers = (nodes, row_starts, out_starts, child_starts, child_codes, emptied_starts, emptied_nodes)
    if any(tensor.dtype != torch.int32 for tensor in integers):
        raise ValueError("nodes, row_starts, out_starts, child_starts, child_codes and emptied nodes must be int32")
    if node_masks.dtype != torch.bool:
        raise ValueError(f"node_masks must be bool, not {node_masks.dtype}")
    if log_normalizer is not None:
        check_shape("log_normalizer", log_normalizer, (rows,))
    if num_out is not None and out_starts.device.type == "cpu" and num_out < (least := int(out_starts[-1])):
        raise ValueError(f"num_out must be at least out_starts[-1], {least}, not {num_out}")
    chosen = implementation("beam_select", logits)(
        logits,
        scores,
        nodes,
        row_starts=row_starts,
        out_starts=out_starts,
        child_starts=child_starts,
        child_codes=child_codes,
        node_masks=node_masks,
        mask_index=mask_index,
        emptied_starts=emptied_starts,
        emptied_nodes=emptied_nodes,
        log_normalizer=log_normalizer,
        num_out=num_out,
        early_stop=early_stop,
    )
    return BeamSelection(*chosen)
