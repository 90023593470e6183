"""kv_write in the precisions it serves in, against the float32 reference on the same inputs."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.agreement import TOLERANCE, agree, widened
from xgr_kernels.kv_write import kv_write
from xgr_kernels.kv_write.reference import kv_write as kv_write_reference

pytestmark = pytest.mark.gpu

dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
heads = pytest.mark.parametrize(("kv_heads", "group", "dim"), [(8, 2, 128), (2, 7, 64), (3, 5, 96), (1, 8, 256)])


@dtypes
@heads
@pytest.mark.parametrize("folded", [False, True])
def test_kv_write(dtype: torch.dtype, kv_heads: int, group: int, dim: int, folded: bool) -> None:
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
    if folded:
        columns = kv_heads * (group + 2) * dim
        options |= {
            "row_scale": torch.rand(tokens, 1, device="cuda"),
            "column_scale": torch.rand(columns, device="cuda"),
        }
        options["hidden"] = torch.randn(tokens, 200, dtype=dtype, device="cuda")
    got = torch.zeros(2, 5, kv_heads, 64, dim, dtype=dtype, device="cuda")
    want = torch.zeros_like(got, dtype=torch.float32)
    agree(
        kv_write(q, k, v, k_pages=got[0], v_pages=got[1], **options),
        kv_write_reference(*widened((q, k, v)), k_pages=want[0], v_pages=want[1], **options),
    )
    agree(got, want)


@dtypes
@heads
def test_pages_in_fp8(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    """Nearest of FP8's numbers to what pages in float32 hold."""
    tokens = 300
    joined = torch.randn(tokens, kv_heads * (group + 2), dim, dtype=dtype, device="cuda")
    split = joined.split([kv_heads * group, kv_heads, kv_heads], dim=1)
    angles = torch.rand(tokens, dim // 2, device="cuda") * 6
    options = {
        "positions": torch.randperm(tokens, device="cuda"),
        "slots": torch.randperm(320, device="cuda")[:tokens],
        "cos_sin": torch.cat([angles.cos(), angles.sin()], 1),
        "q_norm": torch.rand(dim, dtype=dtype, device="cuda") + 0.5,
        "k_norm": torch.rand(dim, dtype=dtype, device="cuda") + 0.5,
        "eps": 1e-6,
    }
    scales = torch.rand(2, kv_heads, device="cuda") * 0.1 + 0.02
    wide = torch.zeros(2, 5, kv_heads, 64, dim, device="cuda")
    got, want = (torch.zeros_like(wide).to(torch.float8_e4m3fn) for _ in range(2))
    out = kv_write(*split, k_pages=got[0], v_pages=got[1], kv_scales=scales, **options)
    plain = kv_write(*split, k_pages=wide[0], v_pages=wide[1], **options)
    assert torch.equal(out, plain)
    kv_write_reference(*widened(split), k_pages=want[0], v_pages=want[1], kv_scales=scales, **options)
    factor = scales[:, None, :, None, None]
    # 3 bits of mantissa: half a step is a sixteenth; below 2^-6 steps are even. The queries' path rounds to no step.
    assert ((got.float() * factor - wide).abs() <= wide.abs() / 16 * 1.0001 + factor * 2.0**-10).all()
    assert (got.view(torch.uint8) != want.view(torch.uint8)).float().mean() < 1e-4
