"""beam_descend in C."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from xgr_kernels.compiled import function

_beam_descend = function("beam_descend", *([c_int64] * 5), *([c_void_p] * 11))


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
    rows, steps = parents.shape[0], ancestors.shape[1]
    descended = parents.new_empty(rows, steps)
    positions, hidden = parents.new_empty(rows, dtype=torch.int64), embedding.new_empty(rows, embedding.shape[1])
    # Held until the call is over.
    level = (child_codes.int(), token_ids.long(), embedding)
    requests = (row_starts.int(), prefix_lengths.int())
    inputs = [x.contiguous() for x in (parents, nodes, *level, *requests, ancestors)]
    _beam_descend(
        *(rows, prefix_lengths.shape[0], embedding.shape[1] * embedding.element_size(), steps, step),
        *[x.data_ptr() for x in inputs],
        *(descended.data_ptr(), positions.data_ptr(), hidden.data_ptr()),
    )
    return descended, positions, hidden
