"""Times gate_up_silu: 28 layers in one graph, 2,048 → 2 × 6,144, beside cuBLAS with and without silu_mul behind it.

python -m xgr_kernels.gate_up_silu.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xgr_kernels.gate_up_silu import gate_up_silu
from xgr_kernels.gate_up_silu.reference import gate_up_silu as reference
from xgr_kernels.silu_mul import silu_mul
from xgr_kernels.timing import graph_ms, report, require

LAYERS, HIDDEN, INTER = 28, 2048, 6144


def arguments(rows: int, layers: int = LAYERS) -> tuple[Tensor, list[Tensor]]:
    """Hidden states [rows, hidden], and each layer's weight."""
    weights = [torch.randn(2 * INTER, HIDDEN, dtype=torch.bfloat16, device="cuda") / HIDDEN**0.5 for _ in range(layers)]
    return torch.randn(rows, HIDDEN, dtype=torch.bfloat16, device="cuda"), weights


def check() -> None:
    x, (weight,) = arguments(1030, layers=1)
    want = reference(x.float(), weight.float())
    require("gate_up_silu", float((gate_up_silu(x, weight).float() - want).norm() / want.norm()), 1e-2)


def run() -> Iterator[tuple[str, float, float]]:
    for rows in (1024, 2048):
        x, weights = arguments(rows)
        yield f"x{LAYERS}, {rows} rows", *graph_ms(lambda x=x, w=weights: [gate_up_silu(x, one) for one in w])


def baselines() -> Iterator[tuple[str, float, float]]:
    for rows in (1024, 2048):
        x, weights = arguments(rows)
        yield f"cuBLAS alone, {rows} rows", *graph_ms(lambda x=x, w=weights: [x @ one.T for one in w])
        both = graph_ms(lambda x=x, w=weights: [silu_mul(x @ one.T) for one in w])
        yield f"cuBLAS, then silu_mul, {rows} rows", *both


if __name__ == "__main__":
    report("gate_up_silu", check, run, baselines)
