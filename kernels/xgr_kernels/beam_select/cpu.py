"""beam_select in C."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from xgr_kernels.compiled import function
from xgr_kernels.scales import in_float32

_beam_select = function(
    "beam_select",
    *(c_int64, c_int64, c_void_p, c_int64, *[c_void_p] * 8, c_int64, *[c_void_p] * 3, c_int, *[c_void_p] * 5),
)


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
    log_normalizer: Tensor | None,
    num_out: int | None = None,
    early_stop: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits = in_float32(logits)
    if log_normalizer is None:
        logits = logits.log_softmax(-1)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if log_normalizer is not None:
        log_normalizer = in_float32(log_normalizer).contiguous()
    requests, out = mask_index.shape[0], out_starts.tolist()[-1]
    num_out = out if num_out is None else num_out
    best = scores.new_empty(num_out)
    parents, reached = nodes.new_empty(2, num_out).unbind()
    scanned, kept = nodes.new_empty(2, requests).unbind()
    if num_out > out:
        for x, missing in ((best, -torch.inf), (parents, 0), (reached, -1)):
            x[out:] = missing
    # Held until the call is over.
    beams = [x.contiguous() for x in (scores, nodes, row_starts, out_starts)]
    trie = [x.contiguous() for x in (child_starts, child_codes, node_masks)]
    filters = [x.contiguous() for x in (mask_index.int(), emptied_starts, emptied_nodes)]
    failed = _beam_select(
        *(requests, logits.shape[1], logits.data_ptr(), logits.stride(0)),
        None if log_normalizer is None else log_normalizer.data_ptr(),
        *[x.data_ptr() for x in beams],
        *[x.data_ptr() for x in trie],
        node_masks.shape[1],
        *[x.data_ptr() for x in filters],
        early_stop,
        *[x.data_ptr() for x in (best, parents, reached, scanned, kept)],
    )
    if failed:
        raise MemoryError("beam_select has no memory for a heap of candidates")
    return best, parents, reached, scanned, kept
