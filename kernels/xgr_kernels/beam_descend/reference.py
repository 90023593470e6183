"""beam_descend in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.ragged import counts_of, owners


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
    rows, counts = parents.shape[0], counts_of(row_starts.tolist())
    real = sum(counts)
    if step:
        descended = ancestors.index_select(0, parents)
        descended[:, step:] = 0
    else:
        descended = ancestors.new_zeros(rows, ancestors.shape[1])
    descended[:, step] = torch.arange(rows, dtype=torch.int32, device=parents.device)
    if len(counts) == 1 and real == rows:
        positions = torch.full((rows,), prefix_lengths.tolist()[0] + step, device=parents.device)
    else:
        positions = torch.zeros(rows, dtype=torch.int64, device=parents.device)
        positions[:real] = (prefix_lengths + step).index_select(0, owners(row_starts))
    at = nodes.clamp(min=0)
    if real < rows:
        at[real:] = 0
    tokens = token_ids.index_select(0, child_codes.index_select(0, at))
    return descended, positions, embedding.index_select(0, tokens)
