"""Numbers in FP8 e4m3, for the references, and the scales of keys and values that are kept so."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest float8_e4m3fn."""


def quantise(x: Tensor, scale: Tensor) -> Tensor:
    """fp8 of x's shape, x = fp8 · scale; what is beyond 448 · scale becomes that."""
    return (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(fp8 [n, columns], scale [n, 1] float32) of float32 x [n, columns] = fp8 · scale, each row's largest at 448."""
    scale = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / FP8_MAX
    return quantise(x, scale), scale


def quantise_heads(x: Tensor, scales: Tensor) -> Tensor:
    """fp8 of x [rows, heads, dim], each head's = fp8 · the scale [kv_heads] of its KV head."""
    return quantise(x.float(), scales.repeat_interleave(x.shape[1] // scales.shape[0])[:, None])


def dequantise(x: Tensor) -> Tensor:
    """FP8 x, or its bytes, in float32. On a CPU by a table, which takes a quarter of the time of torch's conversion."""
    if x.is_cuda:
        return x.view(FP8).float()
    return _values().index_select(0, x.view(torch.uint8).flatten().int()).view(x.shape)


def power_of_two_scales(bounds: Tensor) -> Tensor:
    """For numbers of magnitudes up to these `bounds` the least powers of two with which none is beyond FP8's range.

    Multiplying by them rounds nothing, wherever a kernel does it; and since FP8 has an exponent, numbers far below
    their bound lose nothing either, down to one in 28,672 of it (448 / 2^-6).
    """
    return torch.exp2(torch.ceil(torch.log2(bounds.double().clamp(min=2.0**-100) / FP8_MAX))).float()


@functools.cache
def _values() -> Tensor:
    """[256]: the number that each byte is."""
    return torch.arange(256, dtype=torch.uint8).view(FP8).float()
