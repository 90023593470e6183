"""What the GPU tests of both attentions draw from: paged keys and values, and how near a result must come."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-6}
"""‖kernel − reference‖ / ‖reference‖: a few roundings of the output and of the softmax's weights."""


def agree(got: Tensor, want: Tensor) -> None:
    error = float((got.float() - want.float()).norm() / want.float().norm())
    assert error < TOLERANCE[got.dtype]


def widened(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() if x.is_floating_point() else x for x in tensors)


def in_fp8(pages: Tensor, scales: Tensor) -> Tensor:
    """The same pages in FP8; what was NaN still is. scales: [kv_heads]"""
    return (pages.float() / scales[:, None, None]).to(torch.float8_e4m3fn)


def pages(lengths: list[int], kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and a table of pages of 64 in random order; what no length reaches is NaN."""
    most = -(-max(lengths) // 64) + 1
    table = torch.randperm(len(lengths) * most, device="cuda").view(len(lengths), most)
    keys = torch.randn(len(lengths) * most, kv_heads, 64, dim, dtype=dtype, device="cuda")
    values = torch.randn_like(keys)
    place = torch.arange(most * 64, device="cuda").view(most, 64)
    for row, length in zip(table, lengths, strict=True):
        beyond = (place >= length)[:, None, :, None]
        keys[row] = keys[row].masked_fill(beyond, torch.nan)
        values[row] = values[row].masked_fill(beyond, torch.nan)
    return keys, values, table.int()
