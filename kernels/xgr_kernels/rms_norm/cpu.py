"""rms_norm in C, in float32."""

from __future__ import annotations

from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from xgr_kernels.compiled import function

_rms_norm = function(
    "rms_norm",
    *(c_int64, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_float, c_void_p, c_void_p),
)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    fp8: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    scaled = row_scale is not None or column_scale is not None
    if fp8 or scaled or x.dtype is not torch.float32 or weight.dtype is not torch.float32 or x.stride(1) != 1:
        return NotImplemented
    rows, size = x.shape
    normed, weight = x.new_empty(rows, size), weight.contiguous()
    summed = None
    if residual is not None:
        summed, residual = x.new_empty(rows, size), residual.contiguous()
    _rms_norm(
        *(rows, size, x.data_ptr(), x.stride(0), None if residual is None else residual.data_ptr()),
        *(weight.data_ptr(), eps, None if summed is None else summed.data_ptr(), normed.data_ptr()),
    )
    return normed, None, summed
