"""beam_descend in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.ragged import owners


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
) -> tuple[Tensor, Tensor, Tensor]:
    rows, real = parents.shape[0], int(row_starts[-1])
    descended = ancestors.new_zeros(rows, ancestors.shape[1])
    if step:
        descended[:, :step] = ancestors.index_select(0, parents)[:, :step]
    descended[:, step] = torch.arange(rows, dtype=torch.int32, device=parents.device)
    positions = torch.zeros(rows, dtype=torch.int64, device=parents.device)
    positions[:real] = (prefix_lengths + step).index_select(0, owners(row_starts))
    at = nodes.clamp(min=0)
    if real < rows:
        at[real:] = 0
    tokens = token_ids.index_select(0, child_codes.index_select(0, at))
    return descended, positions, embedding.index_select(0, tokens)
