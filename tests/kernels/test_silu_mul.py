"""silu_mul against the formula, in float64."""

from __future__ import annotations

import pytest
import torch

from xgr_kernels import silu_mul, silu_mul_fp8


@pytest.mark.parametrize(("n", "inter"), [(1, 1), (3, 40), (2, 2100)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_equals_the_formula(device: str, n: int, inter: int, scaled: bool, folded: bool) -> None:
    gate_up = torch.randn(n, 2 * inter, device=device) * 3
    options, values = {}, gate_up.double()
    if scaled:
        options = {"row_scale": torch.rand(n, 1, device=device), "column_scale": torch.rand(2 * inter, device=device)}
        values = values * options["row_scale"] * options["column_scale"]
    if folded:
        hidden = torch.randn(n, 48, device=device) * 5
        options |= {"hidden": hidden, "eps": 1e-5}
        values = values / (hidden.double().square().mean(1, keepdim=True) + 1e-5).sqrt()
    gate, up = values[:, :inter], values[:, inter:]
    torch.testing.assert_close(silu_mul(gate_up, **options), (gate / (1 + (-gate).exp()) * up).float())


def test_fp8_is_the_product_over_its_scale(device: str) -> None:
    gate_up = torch.randn(4, 96, device=device)
    product = silu_mul(gate_up)
    fp8, scale = silu_mul_fp8(gate_up)
    assert fp8.dtype == torch.float8_e4m3fn
    assert ((fp8.float() * scale - product).abs() <= product.abs() / 16 + scale * 2.0**-9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate_up": torch.ones(2, 3)}, "gate_up must have an even number of columns, not 3"),
        ({"hidden": torch.ones(3, 5)}, r"hidden must have shape \[2, any\], not \[3, 5\]"),
        ({"column_scale": torch.ones(2)}, r"column_scale must have shape \[4\], not \[2\]"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        silu_mul(**({"gate_up": torch.ones(2, 4)} | change))
