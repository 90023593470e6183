"""Times beam_select, logits in: one level of 8 requests x 256 beams, several catalogs, flat and peaked scores.

python -m xgr_kernels.beam_select.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xgr_kernels.beam_select.kernel import beam_select
from xgr_kernels.beam_select.reference import beam_select as reference
from xgr_kernels.timing import graph_ms

CODES, PARENTS = 8192, 8192


def trie(children: str) -> tuple[Tensor, Tensor]:
    """child_starts and child_codes of one depth whose parents have so many children: a number, or "zipf"."""
    if children == "zipf":
        counts = (CODES / torch.arange(1, PARENTS + 1)).ceil().long()[torch.randperm(PARENTS)]
    else:
        counts = torch.full((PARENTS,), int(children))
    codes = [
        torch.arange(CODES) if count == CODES else torch.randperm(CODES)[:count].sort().values
        for count in counts.tolist()
    ]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return starts.int().cuda(), torch.cat(codes).int().cuda()


def arguments(children: str, sharpness: float, requests: int = 8, beams: int = 256) -> dict[str, object]:
    """One call's arguments; a tenth of the nodes is masked."""
    child_starts, child_codes = trie(children)
    rows, device = requests * beams, "cuda"
    nodes = torch.cat([torch.randperm(PARENTS, device=device)[:beams] for _ in range(requests)])
    starts = (torch.arange(requests + 1, device=device) * beams).int()
    return {
        "logits": torch.randn(rows, CODES, device=device) * sharpness,
        "scores": -torch.rand(rows, device=device) * 4 * sharpness,
        "nodes": nodes.int(),
        "row_starts": starts,
        "out_starts": starts,
        "child_starts": child_starts,
        "child_codes": child_codes,
        "node_masks": torch.rand(1, len(child_codes), device=device) < 0.9,
        "mask_index": torch.zeros(requests, dtype=torch.int32, device=device),
        "emptied_starts": torch.zeros(requests + 1, dtype=torch.int32, device=device),
        "emptied_nodes": torch.zeros(0, dtype=torch.int32, device=device),
        "normalizer": "level",
        "log_normalizer": None,
        "num_out": rows,
    }


def disagreement(call: dict[str, object]) -> float:
    """Share of the chosen beams that the reference would not have chosen."""
    got, want = beam_select(**call), reference(**call)
    both = torch.cat([got[2], want[2]]).view(2, len(call["mask_index"]), -1).sort(-1).values
    return float((both[0] != both[1]).float().mean()) + float(((got[0] - want[0]).abs() > 1e-4).float().mean())


def cases() -> Iterator[tuple[str, dict[str, object]]]:
    for children in (str(CODES), "183", "1", "zipf"):
        for name, sharpness in (("flat", 0.1), ("peaked", 5.0)):
            yield f"{children} children, {name}", arguments(children, sharpness)
    winner = arguments(str(CODES), 1.0)
    winner["scores"][::256] += 100
    yield "one beam takes all", winner


if __name__ == "__main__":
    for case, call in cases():
        wrong = disagreement(call)
        if not wrong < 1e-2:  # sums of other orders round differently, so two equal candidates may change places
            raise SystemExit(f"beam_select is wrong ({case}): {wrong:.2%} differ from the reference; it is not timed")
        median, spread = graph_ms(lambda call=call: [beam_select(**call) for _ in range(10)])
        print(f"beam_select, 8 x 256 beams, {case}: {median / 10:.4f} ms (± {spread / 10:.4f})")
