"""kv_write in C, in float32."""

from __future__ import annotations

from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from xgr_kernels.compiled import function

__all__ = ["kv_write", "plan"]

_kv_write = function(
    "kv_write",
    *([c_int64] * 7),
    *([c_void_p, c_int64] * 3),
    *([c_void_p] * 5),
    c_float,
    *([c_void_p] * 3),
)


def kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    positions: Tensor,
    slots: Tensor,
    cos_sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    hidden: Tensor | None = None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    kv_scales: Tensor | None = None,
    plan: None = None,
) -> Tensor:
    tokens, heads, dim = q.shape
    is_scaled = any(x is not None for x in (hidden, row_scale, column_scale, kv_scales))
    floats = [x for x in (q, k, v, k_pages, v_pages, cos_sin, q_norm, k_norm) if x is not None]
    dense = all(x.stride()[1:] == (dim, 1) for x in (q, k, v))
    if is_scaled or not dense or {x.dtype for x in floats} != {torch.float32}:
        return NotImplemented
    turned = q.new_empty(tokens, heads, dim)
    # Held until the call is over.
    inputs = [x if x is None else x.contiguous() for x in (positions, slots, cos_sin, q_norm, k_norm)]
    pages, _, page_size, _ = k_pages.shape
    failed = _kv_write(
        *(tokens, heads, k.shape[1], dim, pages, page_size, cos_sin.shape[0]),
        *(q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0)),
        *(x if x is None else x.data_ptr() for x in inputs),
        *(eps, k_pages.data_ptr(), v_pages.data_ptr(), turned.data_ptr()),
    )
    if failed:
        found = f"{positions.min()} to {positions.max()} and up to {slots.max()}"
        raise IndexError(
            f"positions must be 0 to {cos_sin.shape[0] - 1} and slots at most {pages * page_size - 1}, not {found}"
        )
    return turned


def plan(positions: Tensor, slots: Tensor, cos_sin: Tensor) -> None:
    """Nothing is worth preparing; the reference, where it takes over, prepares for itself."""
