"""rms_norm in plain torch, computed in float32."""

from __future__ import annotations

from torch import Tensor

from xgr_kernels.fp8 import quantise_rows
from xgr_kernels.scales import in_float32, normalised, scaled


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    fp8: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(normed, scale or None, summed or None)."""
    values, summed = scaled(x, row_scale, column_scale), None
    if residual is not None:
        summed = values + in_float32(residual)
        if summed.dtype is not x.dtype:
            summed = summed.to(x.dtype)
        values = in_float32(summed)
    normed = normalised(values, weight, eps)
    if fp8:
        return *quantise_rows(normed), summed
    return normed if normed.dtype is x.dtype else normed.to(x.dtype), None, summed
