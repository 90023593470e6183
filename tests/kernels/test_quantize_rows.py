from __future__ import annotations

import pytest
import torch

from tests.kernels.conftest import Run


@pytest.mark.parametrize(("n", "columns"), [(1, 16), (7, 48), (3, 257)])
def test_rows_come_back_within_the_steps_of_fp8(run: Run, n: int, columns: int) -> None:
    x = torch.randn(n, columns) * torch.logspace(-4, 4, n)[:, None]
    x[0] = 0
    fp8, scale = run(x)
    assert fp8.dtype == torch.float8_e4m3fn
    back = fp8.float() * scale
    # e4m3 has 3 bits of mantissa: half a step is a sixteenth; below 2^-6 of 448 steps are even.
    assert ((back - x).abs() <= x.abs() / 16 + scale * 2.0**-9).all()
    assert torch.equal(fp8[1:].float().abs().amax(1), torch.full((n - 1,), 448.0))
