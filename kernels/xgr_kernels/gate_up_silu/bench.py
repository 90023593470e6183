"""Times gate_up_silu: 28 layers in one graph, 2,048 → 2 × 6,144, beside cuBLAS with and without silu_mul behind it;
in FP8 with what quantises for the next product.

python -m xgr_kernels.gate_up_silu.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xgr_kernels.gate_up_silu import gate_up_silu
from xgr_kernels.gate_up_silu.reference import gate_up_silu as reference
from xgr_kernels.quantize_rows import quantize_rows
from xgr_kernels.silu_mul import silu_mul, silu_mul_fp8
from xgr_kernels.timing import graph_ms, report, require

LAYERS, HIDDEN, INTER = 28, 2048, 6144


def arguments(rows: int, layers: int = LAYERS) -> tuple[Tensor, list[Tensor]]:
    """Hidden states [rows, hidden], and each layer's weight."""
    weights = [torch.randn(2 * INTER, HIDDEN, dtype=torch.bfloat16, device="cuda") / HIDDEN**0.5 for _ in range(layers)]
    return torch.randn(rows, HIDDEN, dtype=torch.bfloat16, device="cuda"), weights


def in_fp8(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """The states and their scales; each layer's weight and its scales."""
    quantized = [quantize_rows(weight) for weight in weights]
    return *quantize_rows(x), [(weight, scale.flatten()) for weight, scale in quantized]


def fused_in_fp8(x: Tensor, scale: Tensor, weights: list[tuple[Tensor, Tensor]]) -> None:
    for weight, by in weights:
        quantize_rows(gate_up_silu(x, weight, row_scale=scale, column_scale=by, dtype=torch.bfloat16))


def apart_in_fp8(x: Tensor, scale: Tensor, weights: list[tuple[Tensor, Tensor]]) -> None:
    one = torch.ones((), device="cuda")
    for weight, by in weights:
        product = torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        silu_mul_fp8(product, row_scale=scale, column_scale=by)


def check() -> None:
    x, (weight,) = arguments(1030, layers=1)
    want = reference(x, weight, None, None, torch.float32)
    require("gate_up_silu", float((gate_up_silu(x, weight).float() - want).norm() / want.norm()), 1e-2)
    fp8, scale, ((own, own_scale),) = in_fp8(x, [weight])
    want = reference(fp8, own, scale, own_scale, torch.float32)
    got = gate_up_silu(fp8, own, row_scale=scale, column_scale=own_scale, dtype=torch.bfloat16)
    require("gate_up_silu in FP8", float((got.float() - want).norm() / want.norm()), 1e-2)


def run() -> Iterator[tuple[str, float, float]]:
    for rows in (1024, 2048):
        x, weights = arguments(rows)
        yield f"x{LAYERS}, {rows} rows", *graph_ms(lambda x=x, w=weights: [gate_up_silu(x, one) for one in w])
        quantized = in_fp8(x, weights)
        yield f"x{LAYERS}, {rows} rows in FP8, then quantize_rows", *graph_ms(lambda own=quantized: fused_in_fp8(*own))


def baselines() -> Iterator[tuple[str, float, float]]:
    for rows in (1024, 2048):
        x, weights = arguments(rows)
        yield f"cuBLAS alone, {rows} rows", *graph_ms(lambda x=x, w=weights: [x @ one.T for one in w])
        both = graph_ms(lambda x=x, w=weights: [silu_mul(x @ one.T) for one in w])
        yield f"cuBLAS, then silu_mul, {rows} rows", *both
        quantized = in_fp8(x, weights)
        yield f"cuBLAS in FP8, then silu_mul, {rows} rows", *graph_ms(lambda own=quantized: apart_in_fp8(*own))


if __name__ == "__main__":
    report("gate_up_silu", check, run, baselines)
