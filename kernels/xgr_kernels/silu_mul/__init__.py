"""SiLU of the gate times the up projection, in full precision or quantised to FP8."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xgr_kernels.checks import check_scales, check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["silu_mul", "silu_mul_fp8"]


def silu_mul(
    gate_up: Tensor,
    *,
    hidden: Tensor | None = None,
    eps: float = 1e-6,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
) -> Tensor:
    """silu(gate) · up of `gate_up` [n, 2 · inter], gate first; returns [n, inter] in its dtype, computed in float32.

    hidden [n, hidden]: gate_up is the product of these states before their RMSNorm, whose weight is folded into the
    projection (which has no bias): it is multiplied by rsqrt(mean(hidden²) + eps) first.
    row_scale [n, 1], column_scale [2 · inter], float32: what gate_up is multiplied by first, if it is the product of
    FP8 factors. Raises ValueError on arguments that do not fit each other.
    """
    product: Tensor = _run(gate_up, hidden, eps, row_scale, column_scale, fp8=False)[0]
    return product


def silu_mul_fp8(
    gate_up: Tensor,
    *,
    hidden: Tensor | None = None,
    eps: float = 1e-6,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`silu_mul`, quantised: (fp8 [n, inter] float8_e4m3fn, scale [n, 1] float32), a row being fp8 · scale."""
    fp8, scale = _run(gate_up, hidden, eps, row_scale, column_scale, fp8=True)
    return fp8, scale


def _run(
    gate_up: Tensor,
    hidden: Tensor | None,
    eps: float,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    fp8: bool,
) -> Any:
    check_shape("gate_up", gate_up, (None, None))
    n, columns = gate_up.shape
    if columns % 2:
        raise ValueError(f"gate_up must have an even number of columns, not {columns}")
    if hidden is not None:
        check_shape("hidden", hidden, (n, None))
    check_scales(row_scale, column_scale, n, columns)
    return implementation("silu_mul", gate_up)(gate_up, hidden, eps, row_scale, column_scale, fp8)
