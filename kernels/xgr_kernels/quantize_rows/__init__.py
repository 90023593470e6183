"""Rows quantised to FP8, for a product with FP8 weights."""

from __future__ import annotations

from torch import Tensor

from xgr_kernels.checks import check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["quantize_rows"]


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, columns] as (fp8 [n, columns] float8_e4m3fn, scale [n, 1] float32), a row being fp8 · scale, its largest
    magnitude 448. Raises ValueError on an x of another rank."""
    check_shape("x", x, (None, None))
    fp8, scale = implementation("quantize_rows", x)(x)
    return fp8, scale
