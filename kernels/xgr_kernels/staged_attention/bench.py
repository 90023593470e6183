"""Times staged_attention: 28 layers in one graph, the shape of Qwen3-1.7B (16 heads, 8 KV heads of 128), 256 beams.

python -m xgr_kernels.staged_attention.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xgr_kernels.fp8 import FP8
from xgr_kernels.staged_attention.kernel import plan, staged_attention
from xgr_kernels.staged_attention.reference import staged_attention as reference
from xgr_kernels.timing import graph_ms, report, require

LAYERS, HEADS, KV_HEADS, DIM, PAGE_SIZE, BEAMS, STEPS = 28, 16, 8, 128, 64, 256, 2


def arguments(
    lengths: list[int], dtype: torch.dtype, *, layers: int = 1, beams: int = BEAMS, fp8: bool = False
) -> list[tuple[Tensor, ...]]:
    """One call's tensors for each layer: random data, pages in random order, in FP8 if asked for."""
    requests, rows = len(lengths), len(lengths) * beams
    max_pages = -(-max(lengths) // PAGE_SIZE)
    device = "cuda"
    table = torch.randperm(requests * max_pages, device=device).view(requests, max_pages).int()
    shared = (
        table,
        torch.tensor(lengths, device=device).int(),
        (torch.arange(requests + 1, device=device) * beams).int(),
    )
    ancestors = torch.arange(rows, device=device)[:, None] // beams * beams
    ancestors = (ancestors + torch.randint(0, beams, (rows, STEPS), device=device)).int()
    calls = []
    for _ in range(layers):
        q = torch.randn(rows, HEADS, DIM, dtype=dtype, device=device)
        pages = torch.randn(2, requests * max_pages, KV_HEADS, PAGE_SIZE, DIM, dtype=dtype, device=device)
        pages = pages.to(FP8) if fp8 else pages
        suffix = torch.randn(2, STEPS, rows, KV_HEADS, DIM, dtype=dtype, device=device)
        calls.append((q, pages[0], pages[1], *shared, suffix[0], suffix[1], ancestors))
    return calls


def error(lengths: list[int], dtype: torch.dtype, *, beams: int = BEAMS, fp8: bool = False) -> float:
    """‖kernel − reference‖ / ‖reference‖."""
    (call,) = arguments(lengths, dtype, beams=beams, fp8=fp8)
    want = reference(*(x.float() if x.is_floating_point() else x for x in call), scale=DIM**-0.5)
    got = staged_attention(*call, scale=DIM**-0.5, kv_scales=_scales(call)).float()
    return float((got - want).norm() / want.norm())


def check() -> None:
    for lengths in ([1000, 77], [640] * 7 + [2050]):
        for fp8 in (False, True):
            require("staged_attention", error(lengths, torch.bfloat16, fp8=fp8), 1e-2)


def run() -> Iterator[tuple[str, float, float]]:
    """(case, median ms, spread) of each case, the plan that the layers share included."""
    ragged = [300, 500, 1000, 2000, 3233, 4000, 5000, 6000]
    for name, lengths in (
        ("batch 1, 1000 tokens", [1000]),
        ("batch 1, 5000 tokens", [5000]),
        ("batch 8, 1000 tokens", [1000] * 8),
        ("batch 8, 5000 tokens", [5000] * 8),
        ("batch 8, 300 to 6000 (22,033 tokens)", ragged),
    ):
        for fp8 in (False, True):
            calls = arguments(lengths, torch.bfloat16, layers=LAYERS, fp8=fp8)
            in_fp8 = ", pages in FP8" if fp8 else ""
            yield f"x{LAYERS}, {name}{in_fp8}", *graph_ms(lambda calls=calls: _forward(calls))


def _forward(calls: list[tuple[Tensor, ...]]) -> None:
    shared = plan(
        calls[0][5], calls[0][4], rows=len(calls[0][0]), heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM,
        page_size=PAGE_SIZE, dtype=torch.bfloat16, page_dtype=calls[0][1].dtype,
    )  # fmt: skip
    scales = _scales(calls[0])
    for call in calls:
        staged_attention(*call, scale=DIM**-0.5, kv_scales=scales, plan=shared)


def _scales(call: tuple[Tensor, ...]) -> Tensor | None:
    return torch.ones(2, KV_HEADS, device="cuda") if call[1].dtype == FP8 else None


if __name__ == "__main__":
    report("staged_attention", check, run)
