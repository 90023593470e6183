"""Times beam_select, logits in: one level of 8 requests x 256 beams over several catalogs, on flat and peaked scores.

python -m xgr_kernels.beam_select.bench
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xgr_kernels.beam_select.kernel import beam_select
from xgr_kernels.beam_select.reference import beam_select as reference
from xgr_kernels.timing import graph_ms, report, require

CODES, ITEMS, REQUESTS, BEAMS = 8192, 1_500_000, 8, 256
CALLS = 10


def trie(children: str, codes: int = CODES) -> tuple[Tensor, Tensor]:
    """child_starts and child_codes of one depth: "one" child for each of 1.5 M nodes, or for each of `codes` nodes
    "all" codes, "183" as 1.5 M uniform items have, or "zipf"."""
    if children == "one":
        child_codes = torch.randint(0, codes, (ITEMS,), device="cuda")
        return torch.arange(ITEMS + 1, device="cuda").int(), child_codes.int()
    if children == "zipf":
        counts = (codes / torch.arange(1, codes + 1, device="cuda")).ceil().long()[torch.randperm(codes, device="cuda")]
    else:
        counts = torch.full((codes,), codes if children == "all" else int(children), device="cuda")
    chosen = torch.rand(codes, codes, device="cuda").argsort(1) < counts[:, None]
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return starts.int(), chosen.nonzero()[:, 1].int()


def arguments(
    depth: tuple[Tensor, Tensor],
    sharpness: float,
    requests: int = REQUESTS,
    beams: int = BEAMS,
    before: int | None = None,
) -> dict[str, object]:
    """One call's arguments; a tenth of the nodes is masked. `before`: beams in, where not as many as out."""
    child_starts, child_codes = depth
    before, device = before or beams, "cuda"
    rows, parents = requests * before, len(child_starts) - 1
    nodes = torch.cat([torch.randperm(parents, device=device)[:before] for _ in range(requests)])
    number = torch.arange(requests + 1, device=device)
    return {
        "logits": torch.randn(rows, CODES, device=device) * sharpness,
        "scores": -torch.rand(rows, device=device) * 4 * sharpness,
        "nodes": nodes.int(),
        "row_starts": (number * before).int(),
        "out_starts": (number * beams).int(),
        "child_starts": child_starts,
        "child_codes": child_codes,
        "node_masks": torch.rand(1, len(child_codes), device=device) < 0.9,
        "mask_index": torch.zeros(requests, dtype=torch.int32, device=device),
        "emptied_starts": torch.zeros(requests + 1, dtype=torch.int32, device=device),
        "emptied_nodes": torch.zeros(1, dtype=torch.int32, device=device),
        "log_normalizer": None,
        "num_out": requests * beams,
    }


def exclude(call: dict[str, object], each: int = 10_000) -> dict[str, object]:
    """The same call, so many of each request's nodes emptied."""
    nodes, requests = len(call["child_codes"]), len(call["mask_index"])
    emptied = [torch.randint(0, nodes, (each,), device="cuda").unique() for _ in range(requests)]
    starts = torch.tensor([0, *(len(e) for e in emptied)], device="cuda").cumsum(0).int()
    return call | {"emptied_starts": starts, "emptied_nodes": torch.cat(emptied).int()}


def disagreement(call: dict[str, object]) -> float:
    """Share of the chosen beams that the reference would not have chosen."""
    got, want = beam_select(**call), reference(**call)
    both = torch.cat([got[2], want[2]]).view(2, len(call["mask_index"]), -1).sort(-1).values
    present = want[0] > -torch.inf
    far = ((got[0] - want[0]).abs() > 1e-4) & present
    return float((both[0] != both[1]).float().mean()) + float((far | ((got[0] > -torch.inf) != present)).float().mean())


def cases() -> Iterator[tuple[str, dict[str, object]]]:
    for children in ("all", "183", "one", "zipf"):
        depth = trie(children)
        for name, sharpness in (("flat", 0.1), ("peaked", 5.0)):
            yield f"{children} children, {name}", arguments(depth, sharpness)
        if children in ("all", "183"):
            yield f"{children} children, no early stop", arguments(depth, 1.0) | {"early_stop": False}
        winner = arguments(depth, 1.0)
        winner["scores"][::BEAMS] += 100
        yield f"{children} children, one beam takes all", winner
        yield f"{children} children, 10,000 excluded by each request", exclude(arguments(depth, 1.0))
    depth = trie("183")
    yield (
        "first level",
        arguments((depth[0].new_tensor([0, CODES]), torch.arange(CODES, device="cuda").int()), 1.0, before=1),
    )
    for requests, beams in ((1, 256), (4, 512), (1, 1024)):
        yield f"183 children, {requests} x {beams} beams", arguments(depth, 1.0, requests, beams)


def check() -> None:
    for case, call in cases():
        # Sums of other orders round differently, so two equal candidates may change places.
        require(f"beam_select ({case})", disagreement(call), 1e-2)


def run() -> Iterator[tuple[str, float, float]]:
    """(case, median ms, spread) of one level."""
    for case, call in cases():
        median, spread = graph_ms(lambda call=call: [beam_select(**call) for _ in range(CALLS)])
        yield case, median / CALLS, spread / CALLS


def baselines() -> Iterator[tuple[str, float, float]]:
    """The same choice without any filter."""
    logits = torch.randn(REQUESTS * BEAMS, CODES, device="cuda")
    scores = torch.randn(REQUESTS * BEAMS, 1, device="cuda")

    def choose() -> None:
        for _ in range(CALLS):
            (logits.log_softmax(1) + scores).view(REQUESTS, -1).topk(BEAMS)

    median, spread = graph_ms(choose)
    yield "torch's log_softmax and topk, no filter", median / CALLS, spread / CALLS


if __name__ == "__main__":
    report("beam_select", check, run, baselines)
