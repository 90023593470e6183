from __future__ import annotations

import pytest
import torch

from xgr_kernels import quantize_rows


@pytest.mark.parametrize(("n", "columns"), [(1, 16), (7, 48), (3, 257)])
def test_rows_come_back_within_the_steps_of_fp8(n: int, columns: int) -> None:
    """On the GPU where there is one: Triton's interpreter rounds to FP8 wrongly where the mantissa carries."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(n, columns, device=device) * torch.logspace(-4, 4, n, device=device)[:, None]
    x[0] = 0
    fp8, scale = quantize_rows(x)
    assert fp8.dtype == torch.float8_e4m3fn
    back = fp8.float() * scale
    # e4m3 has 3 bits of mantissa: half a step is a sixteenth; below 2^-6 steps are even.
    assert ((back - x).abs() <= x.abs() / 16 + scale * 2.0**-9).all()
    assert (fp8[1:].float().abs().amax(1) == 448).all()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="x must have shape"):
        quantize_rows(torch.zeros(3))
