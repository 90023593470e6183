"""Times quantize_rows: the weights of 28 layers in one graph, the shape of Qwen3-1.7B, as they are when a model is
loaded with products in FP8.

python -m xgr_kernels.quantize_rows.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xgr_kernels.quantize_rows import quantize_rows
from xgr_kernels.quantize_rows.reference import quantize_rows as reference
from xgr_kernels.timing import graph_ms, report, require

LAYERS = 28
SHAPES = {"qkv": (4096, 2048), "output": (2048, 2048), "gate+up": (12288, 2048), "down": (2048, 6144)}


def weights(name: str) -> list[Tensor]:
    """Each layer's, its own memory. [rows, columns]"""
    return [torch.randn(*SHAPES[name], dtype=torch.bfloat16, device="cuda") for _ in range(LAYERS)]


def check() -> None:
    x = torch.randn(300, 2048, dtype=torch.bfloat16, device="cuda")
    (fp8, scale), (want, wanted_scale) = quantize_rows(x), reference(x)
    wanted = want.float() * wanted_scale
    require("quantize_rows", float((scale - wanted_scale).norm() / wanted_scale.norm()), 1e-6)
    # Of a quotient between two numbers of FP8 the last bit may decide.
    require("quantize_rows", float((fp8.float() * scale - wanted).norm() / wanted.norm()), 1e-3)


def run() -> Iterator[tuple[str, float, float]]:
    for name, (rows, columns) in SHAPES.items():
        own = weights(name)
        yield f"x{LAYERS}, {name}, {rows} x {columns}", *graph_ms(lambda own=own: [quantize_rows(w) for w in own])


def baselines() -> Iterator[tuple[str, float, float]]:
    own = weights("gate+up")
    yield f"x{LAYERS}, gate+up by torch", *graph_ms(lambda: [reference(w) for w in own])


if __name__ == "__main__":
    report("quantize_rows", check, run, baselines)
