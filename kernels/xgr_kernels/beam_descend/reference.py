"""beam_descend in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


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
    rows = torch.arange(len(parents), device=parents.device)
    real = rows < row_starts[-1]
    descended = ancestors.new_zeros(len(parents), ancestors.shape[1])
    descended[:, :step] = ancestors[parents, :step]
    descended[:, step] = rows
    request = torch.searchsorted(row_starts[1:].contiguous(), rows.to(row_starts.dtype), right=True)
    request = request.clamp_(max=len(prefix_lengths) - 1)
    positions = (prefix_lengths[request].long() + step).masked_fill_(~real, 0)
    tokens = token_ids[child_codes[torch.where(real, nodes, 0).clamp_(min=0)]]
    return descended, positions, torch.nn.functional.embedding(tokens, embedding)
