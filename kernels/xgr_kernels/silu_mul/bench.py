"""Times silu_mul: 28 layers in one graph, inner size 6,144.

python -m xgr_kernels.silu_mul.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from xgr_kernels.silu_mul import silu_mul, silu_mul_fp8
from xgr_kernels.silu_mul.reference import silu_mul as reference
from xgr_kernels.timing import graph_ms, report, require

LAYERS, HIDDEN, INTER = 28, 2048, 6144


def check() -> None:
    gate_up = torch.randn(300, 2 * INTER, dtype=torch.bfloat16, device="cuda")
    want, _ = reference(gate_up.float())
    require("silu_mul", float((silu_mul(gate_up).float() - want).norm() / want.norm()), 1e-2)


def run() -> Iterator[tuple[str, float, float]]:
    for rows in (256, 2048):
        products = [torch.randn(rows, 2 * INTER, dtype=torch.bfloat16, device="cuda") for _ in range(LAYERS)]
        hidden = torch.randn(rows, HIDDEN, dtype=torch.bfloat16, device="cuda")
        for name, work in (
            ("", lambda p=products: [silu_mul(x) for x in p]),
            (", norm folded", lambda p=products, h=hidden: [silu_mul(x, hidden=h) for x in p]),
            (", to FP8", lambda p=products: [silu_mul_fp8(x) for x in p]),
        ):
            yield f"x{LAYERS}, {rows} rows{name}", *graph_ms(work)


if __name__ == "__main__":
    report("silu_mul", check, run)
