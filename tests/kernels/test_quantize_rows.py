from __future__ import annotations

import pytest
import torch

from xgr_kernels import quantize_rows


@pytest.mark.parametrize(("n", "columns"), [(7, 48), (3, 257), (1, 16)])
@pytest.mark.parametrize("apart", [1, 2])  # numbers of a row, and rows, that don't lie side by side
def test_rows_come_back_within_the_steps_of_fp8(device: str, n: int, columns: int, apart: int) -> None:
    x = torch.randn(n, 2 * columns, device=device)[:, -columns * apart :: apart]
    x *= torch.logspace(-4, 4, n, device=device)[:, None]
    x[0] = 0
    fp8, scale = quantize_rows(x)
    assert fp8.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(scale, x.abs().amax(1, keepdim=True).clamp(min=1e-12) / 448)
    back = fp8.float() * scale
    # e4m3 has 3 bits of mantissa: half a step is a sixteenth; below 2^-6 steps are even.
    assert ((back - x).abs() <= x.abs() / 16 + scale * 2.0**-9).all()
    assert (fp8[1:].float().abs().amax(1) == 448).all()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="x must have shape"):
        quantize_rows(torch.zeros(3))
