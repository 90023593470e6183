"""gate_up_silu in plain torch: the products' outputs stay in float32 until the end."""

from __future__ import annotations

import torch
from torch import Tensor


def gate_up_silu(
    x: Tensor, weight: Tensor, row_scale: Tensor | None, column_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    products = x.float() @ weight.float().T
    for scale in (row_scale, column_scale):
        if scale is not None:
            products *= scale
    gate, up = products.chunk(2, dim=1)
    return (torch.nn.functional.silu(gate) * up).to(dtype)
