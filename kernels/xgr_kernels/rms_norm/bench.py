"""Times rms_norm: 28 layers in one graph, hidden size 2,048.

python -m xgr_kernels.rms_norm.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xgr_kernels.rms_norm import rms_norm, rms_norm_fp8
from xgr_kernels.rms_norm.reference import rms_norm as reference
from xgr_kernels.timing import graph_ms, report, require

LAYERS, HIDDEN = 28, 2048


def states(rows: int) -> list[Tensor]:
    """Each layer's rows, its own memory. [rows, hidden]"""
    return [torch.randn(rows, HIDDEN, dtype=torch.bfloat16, device="cuda") for _ in range(LAYERS)]


def check() -> None:
    x, residual = states(300)[:2]
    weight = torch.rand(HIDDEN, dtype=torch.bfloat16, device="cuda") + 0.5
    normed, summed = rms_norm(x, weight, 1e-6, residual)
    want, _, wanted_sum = reference(x.float(), weight.float(), 1e-6, residual.float())
    require("rms_norm", float((normed.float() - want).norm() / want.norm()), 1e-2)
    require("rms_norm", float((summed.float() - wanted_sum).norm() / wanted_sum.norm()), 1e-2)


def run() -> Iterator[tuple[str, float, float]]:
    weight = torch.rand(HIDDEN, dtype=torch.bfloat16, device="cuda") + 0.5
    for rows in (256, 2048):
        x, residual = states(rows), states(rows)
        pairs = list(zip(x, residual, strict=True))
        for name, work in (
            ("", lambda p=pairs: [rms_norm(a, weight, 1e-6) for a, _ in p]),
            (", with residual", lambda p=pairs: [rms_norm(a, weight, 1e-6, b) for a, b in p]),
            (", with residual, to FP8", lambda p=pairs: [rms_norm_fp8(a, weight, 1e-6, b) for a, b in p]),
        ):
            yield f"x{LAYERS}, {rows} rows{name}", *graph_ms(work)


if __name__ == "__main__":
    report("rms_norm", check, run)
