"""Times beam_descend: one level of 8 requests x 256 beams, hidden size 2,048.

python -m xgr_kernels.beam_descend.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from xgr_kernels.beam_descend import beam_descend
from xgr_kernels.beam_descend.reference import beam_descend as reference
from xgr_kernels.timing import graph_ms, report, require

REQUESTS, CODES, NODES, VOCAB, HIDDEN = 8, 8192, 1_500_000, 30_000, 2048
CALLS = 10


def arguments(beams: int) -> dict[str, object]:
    rows, device = REQUESTS * beams, "cuda"
    return {
        "parents": torch.randint(0, rows, (rows,), device=device).int(),
        "nodes": torch.randint(-1, NODES, (rows,), device=device).int(),
        "child_codes": torch.randint(0, CODES, (NODES,), device=device).int(),
        "token_ids": torch.randperm(VOCAB, device=device)[:CODES],
        "embedding": torch.randn(VOCAB, HIDDEN, dtype=torch.bfloat16, device=device),
        "row_starts": (torch.arange(REQUESTS + 1, device=device) * beams).int(),
        "prefix_lengths": torch.randint(0, 5000, (REQUESTS,), device=device).int(),
        "step": 1,
        "ancestors": torch.randint(0, rows, (rows, 2), device=device).int(),
    }


def check() -> None:
    call = arguments(77)
    different = sum(int((a != b).sum()) for a, b in zip(beam_descend(**call), reference(**call), strict=True))
    require("beam_descend", different, 0)


def run() -> Iterator[tuple[str, float, float]]:
    for beams in (32, 256):
        call = arguments(beams)
        median, spread = graph_ms(lambda call=call: [beam_descend(**call) for _ in range(CALLS)])
        yield f"{REQUESTS} x {beams} beams", median / CALLS, spread / CALLS


if __name__ == "__main__":
    report("beam_descend", check, run)
