"""Numbers in FP8 as the references have them, and the scales of what is kept in it."""

from __future__ import annotations

import torch

from xgr_kernels.fp8 import FP8, FP8_MAX, dequantise, power_of_two_scales, quantise, quantise_heads


def test_every_byte_is_the_number_that_torch_says() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(FP8)
    torch.testing.assert_close(dequantise(every), every.float(), rtol=0, atol=0, equal_nan=True)
    assert dequantise(every.view(2, 8, 16)).shape == (2, 8, 16)
    torch.testing.assert_close(dequantise(every.view(torch.uint8)), every.float(), rtol=0, atol=0, equal_nan=True)


def test_what_is_beyond_the_range_becomes_its_end() -> None:
    assert quantise(torch.tensor([5e4, -5e4, 3.0]), torch.tensor(2.0)).float().tolist() == [448.0, -448.0, 1.5]


def test_scales_are_the_least_powers_of_two_that_hold_the_bounds() -> None:
    bounds = torch.tensor([448.0, 448.1, 7.0, 1e-20, 3e30])
    scales = power_of_two_scales(bounds)
    assert scales.tolist()[:3] == [1.0, 2.0, 2.0**-6]
    assert torch.equal(torch.frexp(scales).mantissa, torch.full((5,), 0.5))
    assert (bounds <= scales * FP8_MAX).all()
    assert (bounds > scales * FP8_MAX / 2).all()


def test_a_head_of_zeros_has_a_scale_too() -> None:
    scale = power_of_two_scales(torch.zeros(1))
    assert scale > 0
    assert quantise(torch.zeros(3), scale).float().tolist() == [0.0] * 3


def test_heads_are_divided_by_the_scale_of_their_kv_head() -> None:
    x = torch.randn(5, 6, 16)
    scales = torch.tensor([2.0**-7, 2.0**-9])
    got = quantise_heads(x, scales)
    assert got.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(got[:, :3].float() * scales[0], x[:, :3], rtol=1 / 16, atol=2.0**-17)
    torch.testing.assert_close(
        got[:, 3:].float() * scales[1], x[:, 3:].clamp(-448 / 512, 448 / 512), rtol=1 / 16, atol=2.0**-19
    )
