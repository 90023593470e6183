"""RMSNorm of hidden states, with the residual sum before it and FP8 quantisation behind it."""

from __future__ import annotations

from typing import Any, overload

from torch import Tensor

from xgr_kernels.checks import check_scales, check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["rms_norm", "rms_norm_fp8"]


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, row_scale: Tensor | None = None, column_scale: Tensor | None = None
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor,
    *,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNorm of `x` [n, hidden] by `weight` [hidden], in x's dtype; computed in float32.

    With `residual` [n, hidden], of x + residual instead, rounded to x's dtype first; returns (normed, summed), both
    [n, hidden]. row_scale [n, 1], column_scale [hidden], float32: what x is multiplied by before anything else, if it
    is the product of FP8 factors. Raises ValueError on arguments that do not fit each other.
    """
    normed, _, summed = _run(x, weight, eps, residual, row_scale, column_scale, fp8=False)
    return normed if summed is None else (normed, summed)


@overload
def rms_norm_fp8(
    x: Tensor, weight: Tensor, eps: float, *, row_scale: Tensor | None = None, column_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]: ...
@overload
def rms_norm_fp8(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor,
    *,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def rms_norm_fp8(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """`rms_norm`, quantised: (fp8 [n, hidden] float8_e4m3fn, scale [n, 1] float32), and `summed` if with a residual.

    The normed row is fp8 · scale; its largest magnitude becomes 448.
    """
    normed, scale, summed = _run(x, weight, eps, residual, row_scale, column_scale, fp8=True)
    return (normed, scale) if summed is None else (normed, scale, summed)


def _run(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    fp8: bool,
) -> Any:
    check_shape("x", x, (None, None))
    check_shape("weight", weight, (x.shape[1],))
    if residual is not None:
        check_shape("residual", residual, tuple(x.shape))
        if residual.dtype != x.dtype:
            raise ValueError(f"residual must be {x.dtype} like x, not {residual.dtype}")
    check_scales(row_scale, column_scale, x.shape[0], x.shape[1])
    return implementation("rms_norm", x)(x, weight, eps, residual, row_scale, column_scale, fp8)
