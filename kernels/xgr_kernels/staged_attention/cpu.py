"""staged_attention with the beams' own tokens in C; torch's flash attention reads the prefixes."""

from __future__ import annotations

from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from xgr_kernels.compiled import function
from xgr_kernels.staged_attention import reference
from xgr_kernels.staged_attention.reference import Plan, plan, whole_prefixes

__all__ = ["plan", "staged_attention", "whole_prefixes"]

_attend_own = function(
    "attend_own",
    *([c_int64] * 6),
    *(c_void_p, c_float),
    *([c_void_p, c_int64, c_int64, c_int64] * 2),
    *(c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p),
)


def staged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor | None,
    prefix_lengths: Tensor,
    row_starts: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    ancestors: Tensor,
    *,
    scale: float,
    kv_scales: Tensor | None = None,
    out_scales: Tensor | None = None,
    plan: Plan | None = None,
) -> Tensor:
    how = plan or reference.plan(row_starts, prefix_lengths)
    rows, heads, dim = q.shape
    steps, _, kv_heads, _ = suffix_k.shape
    in_float32 = q.dtype is torch.float32 and suffix_k.dtype is torch.float32
    if not how.is_even(rows) or not in_float32 or out_scales is not None:
        return NotImplemented
    q, suffix_k, suffix_v = q.contiguous(), suffix_k.contiguous(), suffix_v.contiguous()
    keys, values = reference.even_prefixes(k_pages, v_pages, kv_scales, page_table, how.lengths)
    beams = reference.beams_of(q.view(rows, kv_heads, heads // kv_heads, dim), len(how.lengths))
    attended, log_total = reference.flash_on_cpu(beams, keys, values, how.lengths, scale)
    out, weights = q.new_empty(rows, heads, dim), q.new_empty(steps)
    ancestors = ancestors.int().contiguous()
    _attend_own(
        *(rows, how.beams[0], kv_heads, heads // kv_heads, dim, steps, q.data_ptr(), scale),
        *(attended.data_ptr(), *attended.stride()[:3], log_total.data_ptr(), *log_total.stride()),
        *(suffix_k.data_ptr(), suffix_v.data_ptr(), suffix_k.stride(0), ancestors.data_ptr(), ancestors.stride(0)),
        *(weights.data_ptr(), out.data_ptr()),
    )
    return out
