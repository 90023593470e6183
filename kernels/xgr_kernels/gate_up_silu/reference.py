"""gate_up_silu in plain torch: the products' outputs stay in float32 until the end."""

from __future__ import annotations

import torch
from torch import Tensor


def gate_up_silu(x: Tensor, weight: Tensor) -> Tensor:
    gate, up = (x.float() @ half.float().T for half in weight.chunk(2))
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)
