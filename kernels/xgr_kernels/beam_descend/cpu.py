"""beam_descend in C, of embeddings in float32; the rest by the reference."""

from __future__ import annotations

from ctypes import c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from xgr_kernels.beam_descend.reference import beam_descend as reference
from xgr_kernels.compiled import function

_beam_descend = function(Path(__file__).with_suffix(".c"), "beam_descend", *([c_int64] * 5), *([c_void_p] * 11))


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
    if embedding.dtype is not torch.float32:
        return reference(
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
    rows, size, steps = parents.shape[0], embedding.shape[1], ancestors.shape[1]
    descended, positions = torch.empty(rows, steps, dtype=torch.int32), torch.empty(rows, dtype=torch.int64)
    hidden = torch.empty(rows, size)
    # Held until the call is over.
    beams = (parents, nodes, child_codes, token_ids, embedding, row_starts, prefix_lengths.int(), ancestors)
    inputs = [x.contiguous() for x in beams]
    _beam_descend(
        *(rows, prefix_lengths.shape[0], size, steps, step),
        *[x.data_ptr() for x in inputs],
        *(descended.data_ptr(), positions.data_ptr(), hidden.data_ptr()),
    )
    return descended, positions, hidden
