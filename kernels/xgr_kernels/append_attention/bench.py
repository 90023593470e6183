"""Times append_attention: 28 layers in one graph, the shape of Qwen3-1.7B (16 heads, 8 KV heads of 128).

python -m xgr_kernels.append_attention.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from xgr_kernels.append_attention.kernel import append_attention, plan
from xgr_kernels.append_attention.reference import append_attention as reference
from xgr_kernels.fp8 import FP8
from xgr_kernels.timing import graph_ms, report, require

LAYERS, HEADS, KV_HEADS, DIM, PAGE_SIZE = 28, 16, 8, 128, 64


def arguments(
    new: list[int], prefix: list[int], dtype: torch.dtype, *, pools: int = 1, fp8: bool = False
) -> list[tuple[Tensor, ...]]:
    """One call's tensors for each of some pools of pages: random data, pages in random order, in FP8 if asked for."""
    users, lengths = len(new), [a + b for a, b in zip(new, prefix, strict=True)]
    max_pages = -(-max(lengths) // PAGE_SIZE)
    device = "cuda"
    table = torch.randperm(users * max_pages, device=device).view(users, max_pages).int()
    starts = torch.tensor([0, *new], device=device).cumsum(0).int()
    calls = []
    for _ in range(pools):
        q = torch.randn(sum(new), HEADS, DIM, dtype=dtype, device=device)
        pages = torch.randn(2, users * max_pages, KV_HEADS, PAGE_SIZE, DIM, dtype=dtype, device=device)
        pages = pages.to(FP8) if fp8 else pages
        calls.append((q, pages[0], pages[1], table, starts, torch.tensor(lengths, device=device).int()))
    return calls


def error(new: list[int], prefix: list[int], dtype: torch.dtype, *, fp8: bool = False) -> float:
    """‖kernel − reference‖ / ‖reference‖."""
    (call,) = arguments(new, prefix, dtype, fp8=fp8)
    want = reference(*(x.float() if x.is_floating_point() else x for x in call), scale=DIM**-0.5)
    got = append_attention(*call, scale=DIM**-0.5, kv_scales=_scales(call)).float()
    return float((got - want).norm() / want.norm())


def check() -> None:
    for new, prefix in (([3, 1, 70], [997, 5, 300]), ([700, 300], [300, 0])):
        for fp8 in (False, True):
            require("append_attention", error(new, prefix, torch.bfloat16, fp8=fp8), 1e-2)


def run() -> Iterator[tuple[str, float, float]]:
    """(case, median ms, spread) of each case, the plan that the layers share included; pools of pages rotate so that
    no layer finds the last one's in cache."""
    for name, new, prefix, pools in (
        ("64 users x 3 tokens over 1000", [3] * 64, [997] * 64, 4),
        ("64 users x 3 tokens over 5000", [3] * 64, [4997] * 64, 2),
        ("1 user x 3 tokens over 1000", [3], [997], 28),
        ("1 user x 3 tokens over 5000", [3], [4997], 28),
        ("prefill of 1000 tokens", [1000], [0], 28),
        ("prefill of 5000 tokens", [5000], [0], 4),
        ("2048 tokens of a prefill over 3000", [2048], [3000], 8),
    ):
        for fp8 in (False, True):
            calls = arguments(new, prefix, torch.bfloat16, pools=pools, fp8=fp8)
            layers = [calls[layer % pools] for layer in range(LAYERS)]
            in_fp8 = ", pages in FP8" if fp8 else ""
            yield f"x{LAYERS}, {name}{in_fp8}", *graph_ms(lambda layers=layers: _forward(layers))


def _forward(calls: list[tuple[Tensor, ...]]) -> None:
    shared = plan(
        calls[0][4], calls[0][5], tokens=len(calls[0][0]), heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM,
        page_size=PAGE_SIZE, dtype=torch.bfloat16, page_dtype=calls[0][1].dtype,
    )  # fmt: skip
    scales = _scales(calls[0])
    for call in calls:
        append_attention(*call, scale=DIM**-0.5, kv_scales=scales, plan=shared)


def _scales(call: tuple[Tensor, ...]) -> Tensor | None:
    return torch.ones(2, KV_HEADS, device="cuda") if call[1].dtype == FP8 else None


def torch_prefill(tokens: int) -> tuple[float, float]:
    """torch's causal attention over contiguous tensors, cuDNN's, as a measure for a prefill."""
    q = torch.randn(1, HEADS, tokens, DIM, dtype=torch.bfloat16, device="cuda")
    k, v = torch.randn(2, 1, KV_HEADS, tokens, DIM, dtype=torch.bfloat16, device="cuda")

    def work() -> None:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            for _ in range(LAYERS):
                scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return graph_ms(work)


def baselines() -> Iterator[tuple[str, float, float]]:
    for tokens in (1000, 5000):
        yield f"x{LAYERS}, prefill of {tokens} tokens by torch", *torch_prefill(tokens)


if __name__ == "__main__":
    report("append_attention", check, run, baselines)
