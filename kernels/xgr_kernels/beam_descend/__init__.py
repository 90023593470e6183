"""What the next forward needs of the beams just selected: their ancestors, positions and embedded tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xgr_kernels.checks import check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["BeamDescent", "beam_descend"]


class BeamDescent(NamedTuple):
    """The beams as rows of the next forward."""

    ancestors: Tensor
    """[rows, max_steps] int32: the row that held a beam's token of each step, in [:, : step + 1]; 0 behind."""
    positions: Tensor
    """[rows] int64: the prefix's length plus the step; 0 for padding rows."""
    hidden: Tensor
    """[rows, hidden]: the beams' tokens, embedded."""


def beam_descend(
    parents: Tensor,
    nodes: Tensor,
    *,
    child_codes: Tensor,
    token_ids: Tensor,
    embedding: Tensor,
    row_starts: Tensor,
    prefix_lengths: Tensor,
    step: int,
    ancestors: Tensor,
) -> BeamDescent:
    """Let each beam r continue the beam parents[r] with the code of the node it reached.

    parents, nodes: [rows] int32, of `beam_select`; a missing beam (node -1) and padding take node 0's token.
    child_codes: [children] int32, of the level just chosen; token_ids: [codes] int64, that level's tokens;
    embedding: [vocab, hidden]. row_starts: [requests + 1], rows behind the last are padding; prefix_lengths:
    [requests]. ancestors: [rows before, max_steps] int32, of which [:, :step] is read: out[r, :step] is that of its
    parent, out[r, step] is r. Raises ValueError on arguments that do not fit each other.
    """
    check_shape("parents", parents, (None,))
    check_shape("nodes", nodes, tuple(parents.shape))
    check_shape("child_codes", child_codes, (None,))
    check_shape("token_ids", token_ids, (None,))
    check_shape("embedding", embedding, (None, None))
    check_shape("prefix_lengths", prefix_lengths, (None,))
    check_shape("row_starts", row_starts, (prefix_lengths.shape[0] + 1,))
    check_shape("ancestors", ancestors, (None, None))
    if not 0 <= step < ancestors.shape[1]:
        raise ValueError(f"step must be within the {ancestors.shape[1]} steps of ancestors, not {step}")
    for name, tensor in (("parents", parents), ("nodes", nodes), ("ancestors", ancestors)):
        if tensor.dtype != torch.int32:
            raise ValueError(f"{name} must be int32, not {tensor.dtype}")
    descent = implementation("beam_descend", embedding)(
        parents,
        nodes,
        child_codes=child_codes,
        token_ids=token_ids,
        embedding=embedding,
        row_starts=row_starts,
        prefix_lengths=prefix_lengths,
        step=step,
        ancestors=ancestors,
    )
    return BeamDescent(*descent)
