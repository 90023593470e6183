"""rms_norm against one row at a time, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xgr_kernels import rms_norm, rms_norm_fp8


def expected(row: Tensor, weight: Tensor, eps: float) -> Tensor:
    row = row.double()
    return (row / (row.square().mean() + eps).sqrt() * weight.double()).float()


@pytest.mark.parametrize(("n", "hidden"), [(1, 1), (3, 40), (5, 130)])
@pytest.mark.parametrize("scaled", [False, True])
def test_equals_one_row_at_a_time(device: str, n: int, hidden: int, scaled: bool) -> None:
    wide = torch.randn(n, 2 * hidden, device=device)
    x, weight = wide[:, hidden:], torch.rand(hidden, device=device) + 0.5  # rows that don't lie side by side
    residual = torch.randn(n, hidden, device=device)
    scales = {}
    factors = torch.ones(n, hidden, device=device)
    if scaled:
        scales = {"row_scale": torch.rand(n, 1, device=device), "column_scale": torch.rand(hidden, device=device)}
        factors = scales["row_scale"] * scales["column_scale"]
    normed = rms_norm(x, weight, 1e-5, **scales)
    with_residual, summed = rms_norm(x, weight, 1e-5, residual, **scales)
    torch.testing.assert_close(summed, x * factors + residual)
    for row in range(n):
        torch.testing.assert_close(normed[row], expected(x[row] * factors[row], weight, 1e-5))
        torch.testing.assert_close(with_residual[row], expected(summed[row], weight, 1e-5))


def test_fp8_is_the_normed_row_over_its_scale(device: str) -> None:
    x, weight = torch.randn(4, 96, device=device), torch.rand(96, device=device) + 0.5
    residual = torch.randn(4, 96, device=device)
    normed, summed = rms_norm(x, weight, 1e-5, residual)
    fp8, scale, summed_too = rms_norm_fp8(x, weight, 1e-5, residual)
    assert fp8.dtype == torch.float8_e4m3fn
    assert scale.shape == (4, 1)
    assert torch.equal(summed, summed_too)
    assert ((fp8.float() * scale - normed).abs() <= normed.abs() / 16 + scale * 2.0**-9).all()
    assert (fp8.float().abs().amax(1) == 448).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(3)}, r"weight must have shape \[4\], not \[3\]"),
        ({"residual": torch.ones(2, 4).half()}, "residual must be torch.float32 like x, not torch.float16"),
        ({"row_scale": torch.ones(2)}, r"row_scale must have shape \[2, 1\], not \[2\]"),
        ({"column_scale": torch.ones(4).half()}, "column_scale must be float32, not torch.float16"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rms_norm(**({"x": torch.ones(2, 4), "weight": torch.ones(4), "eps": 1e-6} | change))
