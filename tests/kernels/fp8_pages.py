"""Pages in FP8 for the tests of the ops that write and read them."""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn


def random_scales(kv_heads: int) -> Tensor:
    """[2, kv_heads]: no powers of two, so that a scale that is left out or used twice is seen."""
    return torch.rand(2, kv_heads) * 0.1 + 0.02


def quantised(pages: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Pages [pages, kv_heads, page_size, dim] in FP8, and what they stand for, float32; NaN stays NaN."""
    fp8 = (pages / scales[:, None, None]).to(FP8)
    return fp8, fp8.float() * scales[:, None, None]
