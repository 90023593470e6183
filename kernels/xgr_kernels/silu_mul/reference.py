"""silu_mul in plain torch, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.fp8 import quantise_rows
from xgr_kernels.scales import inverse_rms, scaled


def silu_mul(
    gate_up: Tensor,
    hidden: Tensor | None = None,
    eps: float = 1e-6,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    fp8: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(product, scale or None)."""
    values = scaled(gate_up, row_scale, column_scale)
    if hidden is not None:
        values = values * inverse_rms(hidden, eps)
    gate, up = values.chunk(2, dim=1)
    product = torch.nn.functional.silu(gate).mul_(up)
    if fp8:
        return quantise_rows(product)
    return product if product.dtype is gate_up.dtype else product.to(gate_up.dtype), None
