"""The kernels in the precisions they serve in, against the float32 references on the same inputs.

tests/kernels holds every op to a loop oracle in float32, on the GPU too where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xgr_kernels.kv_write import kv_write
from xgr_kernels.kv_write.reference import kv_write as kv_write_reference

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
