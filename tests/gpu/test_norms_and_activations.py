"""rms_norm, silu_mul, gate_up_silu and beam_descend in the precisions they serve in, against their references."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.agreement import TOLERANCE, agree
from xgr_kernels import beam_descend, gate_up_silu, quantize_rows, rms_norm, rms_norm_fp8, silu_mul, silu_mul_fp8
from xgr_kernels.beam_descend.reference import beam_descend as beam_descend_reference
from xgr_kernels.gate_up_silu.reference import gate_up_silu as gate_up_silu_reference
from xgr_kernels.rms_norm.reference import rms_norm as rms_norm_reference
from xgr_kernels.silu_mul.reference import silu_mul as silu_mul_reference

pytestmark = pytest.mark.gpu

FP8_TOLERANCE = 5e-3
"""Where float32 rounds differently, a value near the middle of two FP8 steps takes the other."""
FP8_SUMS = 2e-3
"""The matrix units add up products of FP8 with some 14 bits, as fast as that is."""

dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


@dtypes
@pytest.mark.parametrize("hidden", [2048, 1000])
def test_rms_norm(dtype: torch.dtype, hidden: int) -> None:
    x, residual = torch.randn(2, 300, hidden, dtype=dtype, device="cuda")
    weight = torch.rand(hidden, dtype=dtype, device="cuda") + 0.5
    scales = torch.rand(300, 1, device="cuda") + 0.5, torch.rand(hidden, device="cuda") + 0.5
    named = dict(zip(("row_scale", "column_scale"), scales, strict=True))
    want, _, sums = rms_norm_reference(x, weight, 1e-6, residual, *scales)
    got, summed = rms_norm(x, weight, 1e-6, residual, **named)
    agree(got, want)
    agree(summed, sums)
    fp8, scale, summed = rms_norm_fp8(x, weight, 1e-6, residual, **named)
    want, want_scale, _ = rms_norm_reference(x, weight, 1e-6, residual, *scales, fp8=True)
    agree(fp8.float() * scale, want.float() * want_scale, FP8_TOLERANCE)
    agree(summed, sums)


@dtypes
@pytest.mark.parametrize("inter", [6144, 1000])
def test_silu_mul(dtype: torch.dtype, inter: int) -> None:
    gate_up = torch.randn(300, 2 * inter, dtype=dtype, device="cuda")
    hidden = torch.randn(300, 700, dtype=dtype, device="cuda") * 3
    scales = torch.rand(300, 1, device="cuda") + 0.5, torch.rand(2 * inter, device="cuda") + 0.5
    named = dict(zip(("row_scale", "column_scale"), scales, strict=True))
    want, _ = silu_mul_reference(gate_up, hidden, 1e-6, *scales)
    agree(silu_mul(gate_up, hidden=hidden, **named), want)
    fp8, scale = silu_mul_fp8(gate_up, hidden=hidden, **named)
    want, want_scale = silu_mul_reference(gate_up, hidden, 1e-6, *scales, fp8=True)
    agree(fp8.float() * scale, want.float() * want_scale, FP8_TOLERANCE)


@dtypes
@pytest.mark.parametrize(("n", "inter", "hidden"), [(1030, 6144, 2048), (200, 1000, 776)])
def test_gate_up_silu(dtype: torch.dtype, n: int, inter: int, hidden: int) -> None:
    x = torch.randn(n, hidden, dtype=dtype, device="cuda")
    weight = torch.randn(2 * inter, hidden, dtype=dtype, device="cuda") / hidden**0.5
    want = gate_up_silu_reference(x, weight, None, None, dtype)
    agree(gate_up_silu(x, weight), want, max(TOLERANCE[dtype], 1e-5))


@dtypes
@pytest.mark.parametrize(("n", "inter", "hidden"), [(1030, 6144, 2048), (200, 1000, 776), (40, 100, 130)])
def test_gate_up_silu_of_fp8(dtype: torch.dtype, n: int, inter: int, hidden: int) -> None:
    x, row_scale = quantize_rows(torch.randn(n, hidden, device="cuda"))
    weight, column_scale = quantize_rows(torch.randn(2 * inter, hidden, device="cuda") / hidden**0.5)
    scales = row_scale, column_scale.flatten()
    got = gate_up_silu(x, weight, row_scale=scales[0], column_scale=scales[1], dtype=dtype)
    agree(got, gate_up_silu_reference(x, weight, *scales, dtype), max(TOLERANCE[dtype], FP8_SUMS))


@dtypes
def test_beam_descend(dtype: torch.dtype) -> None:
    rows, before = 500, 300
    call = {
        "parents": torch.randint(0, before, (rows,), device="cuda").int(),
        "nodes": torch.randint(-1, 9000, (rows,), device="cuda").int(),
        "child_codes": torch.randint(0, 400, (9000,), device="cuda").int(),
        "token_ids": torch.randperm(3000, device="cuda")[:400],
        "embedding": torch.randn(3000, 2048, dtype=dtype, device="cuda"),
        "row_starts": torch.tensor([0, 100, 100, 450, 450], device="cuda").int(),
        "prefix_lengths": torch.tensor([7, 0, 5000, 0], device="cuda").int(),
        "step": 1,
        "ancestors": torch.randint(0, before, (before, 3), device="cuda").int(),
    }
    for got, want in zip(beam_descend(**call), beam_descend_reference(**call), strict=True):
        assert torch.equal(
            got[:, :2] if got.dtype == torch.int32 else got, want[:, :2] if got.dtype == torch.int32 else want
        )
