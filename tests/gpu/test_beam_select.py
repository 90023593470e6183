"""beam_select bit by bit: numbers that are added without rounding, against a float64 sort of all candidates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xgr_kernels import beam_select
from xgr_kernels.beam_select.reference import beam_select as reference
from xgr_stream.collector import collector_resting

pytestmark = pytest.mark.gpu

CODES, MOST_CODES = 8192, 65_536


def starts_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts], device="cuda").cumsum(0).int()


def exact(*shape: int, spread: int = 100) -> Tensor:
    """Multiples of 1/64 that float32 adds without rounding."""
    return (torch.randn(*shape, device="cuda") * spread * 64).round().clamp(-64000, 64000) / 64


def sorted_candidates(call: dict[str, Tensor], request: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, parents and nodes [width] of the best, missing ones at the end."""
    first, last = call["row_starts"][request : request + 2].tolist()
    width = int(call["out_starts"][request + 1] - call["out_starts"][request])
    rows = torch.arange(first, last, device="cuda")
    rows = rows[call["scores"][rows] > -torch.inf]
    begin, end = (call["child_starts"][call["nodes"][rows].long() + i].long() for i in (0, 1))
    row = torch.repeat_interleave(rows, end - begin)
    node = torch.cat(
        [torch.arange(a, b, device="cuda") for a, b in zip(begin.tolist(), end.tolist(), strict=True)] or [rows]
    )
    emptied = call["emptied_nodes"][call["emptied_starts"][request] : call["emptied_starts"][request + 1]]
    legal = call["node_masks"][call["mask_index"][request], node] & ~torch.isin(node, emptied)
    row, node = row[legal], node[legal]
    code = call["child_codes"][node].long()
    score = call["scores"][row].double() + call["logits"][row, code].double() - call["log_normalizer"][row].double()
    order = node.argsort()
    order = order[score[order].argsort(descending=True, stable=True)][:width]
    missing = width - len(order)
    columns = (score.float(), -torch.inf), (row.int(), first), (node.int(), -1)
    return tuple(torch.nn.functional.pad(x[order], (0, missing), value=value) for x, value in columns)


def draw(
    counts: list[int],
    beams: list[int],
    widths: list[int],
    spread: int,
    *,
    bucket: tuple[int, int, int] = (8, 700, 900),
    codes: int = CODES,
    legal: float = 0.9,
) -> dict[str, object]:
    """A `bucket` of requests, rows and outputs, of which `beams` and `widths` are used; the rest is poison."""
    rows, (requests, padded, num_out) = sum(beams), bucket
    own_codes = [torch.randperm(codes, device="cuda")[:count].sort().values for count in counts]
    child_codes = torch.cat(own_codes).int()
    nodes = torch.cat([torch.randperm(len(counts), device="cuda")[:count] for count in beams])
    scores, logits = -exact(padded, spread=spread).abs(), exact(padded, codes, spread=spread)
    scores[torch.rand(padded, device="cuda") < 0.1] = -torch.inf
    scores[rows:], logits[rows:] = torch.nan, torch.nan
    unused = [0] * (requests - len(beams))
    emptied = [
        torch.randint(0, len(child_codes), (3000,), device="cuda").unique(),
        *(nodes[:0] for _ in range(requests - 1)),
    ]
    return {
        "logits": logits,
        "scores": scores,
        "nodes": torch.nn.functional.pad(nodes, (0, padded - rows), value=10**9).int(),
        "row_starts": starts_of(beams + unused),
        "out_starts": starts_of(widths + unused),
        "child_starts": starts_of(counts),
        "child_codes": child_codes,
        "node_masks": torch.rand(2, len(child_codes), device="cuda") < legal,
        "mask_index": torch.tensor([0, 1] * (requests // 2), device="cuda").int(),
        "emptied_starts": starts_of([len(e) for e in emptied]),
        "emptied_nodes": torch.cat([*emptied, torch.full((50,), -9, device="cuda")]).int(),
        "log_normalizer": exact(padded, spread=spread),
        "num_out": num_out,
    }


@pytest.mark.parametrize("children", ["all", "183", "one", "zipf"])
@pytest.mark.parametrize("spread", [0, 3, 100], ids=["ties", "flat", "peaked"])
def test_equals_a_sort_of_all_candidates(children: str, spread: int) -> None:
    beams, widths = [300, 1, 77], [256, 512, 100]
    parents = 310
    counts = {"all": [CODES] * parents, "183": [183] * parents, "one": [1] * parents}
    counts["zipf"] = [-(-CODES // (i + 1)) for i in torch.randperm(parents).tolist()]
    call = draw(counts[children], beams, widths, spread)
    want = [torch.cat(parts) for parts in zip(*(sorted_candidates(call, i) for i in range(len(beams))), strict=True)]
    for early_stop in (True, False):
        chosen = beam_select(**call, early_stop=early_stop)
        for got, wanted, missing in zip(chosen[:3], want, (-torch.inf, 0, -1), strict=True):
            assert torch.equal(got[: len(wanted)], wanted)
            assert (got[len(wanted) :] == missing).all()


@pytest.fixture(scope="module", params=["all", "zipf"])
def most_codes(request: pytest.FixtureRequest) -> list[int]:
    """Children of each parent, of as many codes as there may be."""
    return [MOST_CODES if request.param == "all" else -(-MOST_CODES // (i + 1)) for i in range(1100)]


@pytest.mark.parametrize("legal", [0.9, 0.001], ids=["few filtered", "few left"])
@pytest.mark.parametrize("spread", [0, 100], ids=["ties", "peaked"])
def test_equals_the_reference_with_the_most_codes_and_beams(most_codes: list[int], spread: int, legal: float) -> None:
    """A catalog filter and a request's own exclusions, too."""
    bucket = 4, 1400, 2100
    call = draw(most_codes, [1024, 1, 77], [1024, 1024, 5], spread, bucket=bucket, codes=MOST_CODES, legal=legal)
    want = reference(**call)
    for early_stop in (True, False):
        for got, wanted in zip(beam_select(**call, early_stop=early_stop)[:3], want[:3], strict=True):
            assert torch.equal(got, wanted)


def test_scores_of_the_most_codes_are_within_their_rounding(most_codes: list[int]) -> None:
    """Numbers that are rounded, over the log-sum-exp of all codes."""
    call = draw(most_codes, [1024], [1024], 100, bucket=(2, 1100, 1100), codes=MOST_CODES)
    call["logits"], call["log_normalizer"] = torch.randn_like(call["logits"]) * 3, None
    chosen = beam_select(**call)
    normalizer = call["logits"].double().logsumexp(1)
    scores, _, nodes = sorted_candidates(call | {"log_normalizer": normalizer}, 0)
    torch.testing.assert_close(chosen.scores[:1024], scores, atol=1e-4, rtol=0)
    assert (chosen.nodes[:1024] == nodes).float().mean() > 0.99  # where two change places, they are as near as that


def test_replays_with_other_data() -> None:
    """Captured once, the graph's next replay reads what its buffers hold by then, ragged in another way."""
    one, other = draw([183] * 310, [300, 1, 77], [256, 512, 100], 3), draw([183] * 310, [10, 250], [300, 200], 100)
    shared = {name: x.clone() if isinstance(x, Tensor) else x for name, x in one.items()}
    capacity = max(len(one["emptied_nodes"]), len(other["emptied_nodes"]))
    shared["emptied_nodes"] = torch.zeros(capacity, dtype=torch.int32, device="cuda")
    beam_select(**shared)
    graph = torch.cuda.CUDAGraph()
    with collector_resting(), torch.cuda.graph(graph):
        captured = beam_select(**shared)
    for call in (other, one):
        for name, x in call.items():
            if isinstance(x, Tensor):
                shared[name][: len(x)].copy_(x)
        graph.replay()
        for got, wanted in zip(captured, beam_select(**call), strict=True):
            assert torch.equal(got, wanted)
