"""Times kv_write: 28 layers in one graph, the shape of Qwen3-1.7B (16 heads, 8 KV heads of 128).

python -m xgr_kernels.kv_write.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from xgr_kernels.kv_write.kernel import kv_write
from xgr_kernels.kv_write.reference import kv_write as reference
from xgr_kernels.timing import graph_ms, report, require

LAYERS, HEADS, KV_HEADS, DIM, PAGE_SIZE = 28, 16, 8, 128, 64


def arguments(tokens: int, dtype: torch.dtype) -> tuple[tuple[torch.Tensor, ...], dict[str, object]]:
    """One call's tensors; q, k and v are views of one product's output, as in a decoder."""
    device = "cuda"
    joined = torch.randn(tokens, (HEADS + 2 * KV_HEADS) * DIM, dtype=dtype, device=device)
    q, k, v = joined.view(tokens, -1, DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    pages = torch.zeros(2, tokens // PAGE_SIZE + 1, KV_HEADS, PAGE_SIZE, DIM, dtype=dtype, device=device)
    angles = torch.rand(tokens, DIM // 2, device=device) * 6
    options = {
        "positions": torch.arange(tokens, device=device),
        "slots": torch.randperm(tokens, device=device),
        "cos_sin": torch.cat([angles.cos(), angles.sin()], 1),
        "k_pages": pages[0],
        "v_pages": pages[1],
        "q_norm": torch.rand(DIM, dtype=dtype, device=device) + 0.5,
        "k_norm": torch.rand(DIM, dtype=dtype, device=device) + 0.5,
        "eps": 1e-6,
    }
    return (q, k, v), options


def error(tokens: int, dtype: torch.dtype) -> float:
    """The largest ‖kernel − reference‖ / ‖reference‖ of q, keys and values."""
    heads, options = arguments(tokens, dtype)
    pages = {name: torch.zeros_like(options[name]) for name in ("k_pages", "v_pages")}
    want = reference(*heads, **(options | pages))
    got = kv_write(*heads, **options)
    pairs = [(got, want), *((options[name], pages[name]) for name in pages)]
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


def check() -> None:
    require("kv_write", error(100, torch.bfloat16), 1e-2)


def run() -> Iterator[tuple[str, float, float]]:
    for tokens in (256, 2048):
        heads, options = arguments(tokens, torch.bfloat16)
        yield (
            f"x{LAYERS}, {tokens} tokens",
            *graph_ms(lambda h=heads, o=options: [kv_write(*h, **o) for _ in range(LAYERS)]),
        )


if __name__ == "__main__":
    report("kv_write", check, run)
