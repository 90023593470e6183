"""The kernels in the precisions they serve in, against the float32 references on the same inputs.

tests/kernels holds every op to a loop oracle in float32, on the GPU too where there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from xgr_kernels.append_attention import append_attention
from xgr_kernels.append_attention.reference import append_attention as append_attention_reference
from xgr_kernels.kv_write import kv_write
from xgr_kernels.kv_write.reference import kv_write as kv_write_reference
from xgr_kernels.staged_attention import staged_attention
from xgr_kernels.staged_attention.reference import staged_attention as staged_attention_reference

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-6}
"""‖kernel − reference‖ / ‖reference‖: a few roundings of the output and of the softmax's weights."""

dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
heads = pytest.mark.parametrize(("kv_heads", "group", "dim"), [(8, 2, 128), (2, 7, 64), (3, 5, 96), (1, 8, 256)])


def agree(got: Tensor, want: Tensor) -> None:
    error = float((got.float() - want.float()).norm() / want.float().norm())
    assert error < TOLERANCE[got.dtype]


def widened(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() if x.is_floating_point() else x for x in tensors)


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


def compare(op: Callable[..., Tensor], reference: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
    agree(op(*arguments, scale=0.1), reference(*widened(arguments), scale=0.1))


@dtypes
@heads
def test_staged_attention(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    for lengths, beams in (([1000], [256]), ([0, 77, 1300], [50, 1, 129]), ([640] * 8, [256] * 8)):
        rows = sum(beams)
        starts = torch.tensor([0, *beams], device="cuda").cumsum(0).int()
        q = torch.randn(rows, kv_heads * group, dim, dtype=dtype, device="cuda")
        suffix = torch.randn(2, 3, rows, kv_heads, dim, dtype=dtype, device="cuda")
        ancestors = torch.randint(0, rows, (rows, 3), device="cuda").int()
        lengths_ = torch.tensor(lengths, device="cuda").int()
        prefix = pages(lengths, kv_heads, dim, dtype)
        compare(staged_attention, staged_attention_reference, (q, *prefix, lengths_, starts, *suffix, ancestors))


@dtypes
@heads
def test_append_attention(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    for new, prefix in (([3] * 64, [200] * 64), ([3], [997]), ([700], [0]), ([1, 0, 65, 300], [0, 40, 999, 64])):
        lengths = [a + b for a, b in zip(new, prefix, strict=True)]
        starts = torch.tensor([0, *new], device="cuda").cumsum(0).int()
        q = torch.randn(sum(new), kv_heads * group, dim, dtype=dtype, device="cuda")
        lengths_ = torch.tensor(lengths, device="cuda").int()
        compare(
            append_attention,
            append_attention_reference,
            (q, *pages(lengths, kv_heads, dim, dtype), starts, lengths_),
        )


@dtypes
@heads
def test_kv_write(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    tokens = 300
    joined = torch.randn(tokens, kv_heads * (group + 2), dim, dtype=dtype, device="cuda")
    q, k, v = joined.split([kv_heads * group, kv_heads, kv_heads], dim=1)
    angles = torch.rand(tokens, dim // 2, device="cuda") * 6
    slots = torch.randperm(320, device="cuda")[:tokens]
    slots[::5] = -1
    options = {
        "positions": torch.randperm(tokens, device="cuda"),
        "slots": slots,
        "cos_sin": torch.cat([angles.cos(), angles.sin()], 1),
        "q_norm": torch.rand(dim, dtype=dtype, device="cuda") + 0.5,
        "k_norm": torch.rand(dim, dtype=dtype, device="cuda") + 0.5,
        "eps": 1e-6,
    }
    got = torch.zeros(2, 5, kv_heads, 64, dim, dtype=dtype, device="cuda")
    want = torch.zeros_like(got, dtype=torch.float32)
    agree(
        kv_write(q, k, v, k_pages=got[0], v_pages=got[1], **options),
        kv_write_reference(*widened((q, k, v)), k_pages=want[0], v_pages=want[1], **options),
    )
    agree(got, want)
