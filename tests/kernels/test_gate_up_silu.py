"""gate_up_silu against the formula, in float64."""

from __future__ import annotations

import pytest
import torch

from xgr_kernels import gate_up_silu
from xgr_kernels.fp8 import FP8, quantise_rows


@pytest.mark.parametrize(
    ("n", "inter", "hidden"),
    # 600 rows: more tiles than are computed side by side, in more than one group.
    [(1, 1, 1), (5, 40, 33), (70, 65, 130), (32, 32, 64), (600, 70, 40), (3, 4, 0)],
)
def test_equals_the_formula(device: str, n: int, inter: int, hidden: int) -> None:
    x, weight = torch.randn(n, hidden, device=device), torch.randn(2 * inter, hidden, device=device)
    gate, up = x.double() @ weight[:inter].double().T, x.double() @ weight[inter:].double().T
    wanted = (gate / (1 + (-gate).exp()) * up).float()
    torch.testing.assert_close(gate_up_silu(x, weight), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("at", [0, 1])
def test_factors_may_lie_anywhere(device: str, at: int) -> None:
    x = torch.randn(4, 33, device=device)[:1, at : at + 32]
    weight = torch.randn(10 * 32 + 1, device=device)[at : at + 320].view(10, 32)
    gate, up = (x.double() @ weight.double().T).chunk(2, dim=1)
    torch.testing.assert_close(gate_up_silu(x, weight), (gate * gate.sigmoid() * up).float(), rtol=1e-4, atol=1e-3)


# 1,100 rows: the tiles that serve, in more than one group.
@pytest.mark.parametrize(("n", "inter", "hidden"), [(5, 40, 33), (70, 65, 136), (1100, 130, 144)])
def test_products_of_fp8_are_multiplied_by_their_scales_first(device: str, n: int, inter: int, hidden: int) -> None:
    x, row_scale = quantise_rows(torch.randn(n, hidden, device=device))
    weight, column_scale = quantise_rows(torch.randn(2 * inter, hidden, device=device))
    gate, up = (x.double() * row_scale @ (weight.double() * column_scale).T).chunk(2, dim=1)
    wanted = (gate / (1 + (-gate).exp()) * up).float()
    scales = {"row_scale": row_scale, "column_scale": column_scale.flatten()}
    torch.testing.assert_close(gate_up_silu(x, weight, **scales, dtype=torch.float32), wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4, 3), r"weight must have shape \[any, 5\], not \[4, 3\]"),
        (torch.ones(3, 5), "weight must have an even number of rows, not 3"),
        (torch.ones(4, 5).half(), "weight must be torch.float32 like x, not torch.float16"),
    ],
)
def test_bad_arguments_are_named(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate_up_silu(torch.ones(2, 5), weight)


@pytest.mark.parametrize(
    ("of", "dtype"), [(torch.float32, torch.float32), (FP8, None), (FP8, torch.int32), (torch.bfloat16, torch.float32)]
)
def test_a_dtype_is_for_fp8_alone(of: torch.dtype, dtype: torch.dtype | None) -> None:
    with pytest.raises(ValueError, match=f"dtype must be given for FP8, .*, not {dtype}"):
        gate_up_silu(torch.ones(2, 5).to(of), torch.ones(4, 5).to(of), dtype=dtype)
