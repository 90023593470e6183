"""What the GPU tests of both attentions draw from: shapes, paged keys and values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


def _shapes(*cases: tuple[torch.dtype, int, int, int]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("dtype", "kv_heads", "group", "dim"), cases, ids=str)


SHAPES = _shapes(
    (torch.bfloat16, 8, 2, 128),
    (torch.bfloat16, 2, 7, 64),
    (torch.bfloat16, 3, 5, 96),
    (torch.bfloat16, 1, 8, 256),
    (torch.float16, 8, 2, 128),
    (torch.float32, 2, 7, 64),
    (torch.float32, 3, 5, 96),
)
FP8_SHAPES = _shapes(
    (torch.bfloat16, 8, 2, 128),
    (torch.bfloat16, 4, 3, 64),
    (torch.bfloat16, 3, 5, 96),
    (torch.bfloat16, 1, 8, 256),
    (torch.float16, 2, 7, 64),
    (torch.float32, 2, 7, 64),
)
"""Of the dtype computed in; the pages are in FP8."""


ROUNDED_TO_FP8 = 4e-2
"""Of results in FP8: what a small difference before takes to the other side of a step, an eighth, differs by one."""


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
