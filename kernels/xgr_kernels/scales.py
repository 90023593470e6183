"""The factors that a product of FP8 matrices, or of unnormalised hidden states, still lacks, for the references."""

from __future__ import annotations

from torch import Tensor


def scaled(x: Tensor, row_scale: Tensor | None, column_scale: Tensor | None) -> Tensor:
    """x [n, columns] in float32, times row_scale [n, 1] and column_scale [columns] where given."""
    x = x.float()
    if row_scale is not None:
        x = x * row_scale
    return x if column_scale is None else x * column_scale


def inverse_rms(hidden: Tensor, eps: float) -> Tensor:
    """[n, 1]: what RMSNorm multiplies each row of hidden [n, hidden] by."""
    return (hidden.float().square().mean(dim=1, keepdim=True) + eps).rsqrt()
