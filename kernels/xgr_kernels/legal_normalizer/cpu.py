"""legal_normalizer in C."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

from torch import Tensor

from xgr_kernels.compiled import function
from xgr_kernels.scales import in_float32

_legal_normalizer = function(
    "legal_normalizer",
    *(c_int64, c_int64, c_int64, c_void_p, c_int64, *[c_void_p] * 5, c_int64, *[c_void_p] * 4, c_int64, c_void_p),
)


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
    logits = in_float32(logits)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, codes = logits.shape
    normalizers = logits.new_empty(rows)
    # Held until the call is over.
    trie = [x.contiguous() for x in (nodes, row_starts, child_starts, child_codes, node_masks)]
    filters = [x.contiguous() for x in (mask_index.int(), emptied_starts, emptied_nodes, others)]
    failed = _legal_normalizer(
        *(mask_index.shape[0], rows, codes, logits.data_ptr(), logits.stride(0)),
        *[x.data_ptr() for x in trie],
        node_masks.shape[1],
        *[x.data_ptr() for x in filters],
        others.shape[1],
        normalizers.data_ptr(),
    )
    if failed:
        raise MemoryError("legal_normalizer has no memory for a row of logits")
    return normalizers
