"""Rows quantised to FP8 e4m3, for the references."""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MAX = 448.0
"""The largest float8_e4m3fn."""


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(fp8 [n, columns], scale [n, 1] float32) of float32 x [n, columns] = fp8 · scale, each row's largest at 448."""
    scale = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / FP8_MAX
    return (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale
