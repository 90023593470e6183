"""legal_normalizer in its precisions, on levels of the size that they are, and in a graph that serves other data."""

from __future__ import annotations

import importlib
import math
import random

import pytest
import torch
from torch import Tensor

from xgr_kernels import legal_normalizer
from xgr_kernels.mask_exclude import NO_NODE
from xgr_stream.collector import collector_resting

pytestmark = pytest.mark.gpu

CODES = 8192
BASE, DELTA = 310, 40
TOLERANCE = 1e-4
"""Log-sum-exps of the same numbers: in 16 bits too, since both sides read what is rounded."""
reference = importlib.import_module("xgr_kernels.legal_normalizer.reference").legal_normalizer


def starts_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts], device="cuda").cumsum(0).int()


def draw(children: int, beams: list[int], shared: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A bucket of 8 requests and 700 rows, of which `beams` are used; the rest is poison. `shared`: nodes of both
    tries."""
    rng = random.Random(children)
    counts = [children] * BASE + [rng.randint(0, 9) for _ in range(DELTA)]
    child_codes = torch.cat([torch.randperm(CODES, device="cuda")[:count].sort().values for count in counts]).int()
    first = torch.tensor(sorted(rng.sample(range(BASE), shared)))
    second = torch.tensor(sorted(rng.sample(range(BASE, BASE + DELTA), shared)))
    others = torch.tensor([[NO_NODE], [-1]]).repeat(1, 100)
    others[:, : 2 * shared] = torch.stack((torch.cat((first, second)), torch.cat((second, first))))
    rows, unused = sum(beams), [0] * (8 - len(beams))
    nodes = torch.tensor(
        [rng.choice((-1, rng.randrange(BASE), rng.randrange(BASE, BASE + DELTA))) for _ in range(rows)]
    )
    logits = torch.randn(700, CODES, device="cuda", dtype=dtype) * 5
    logits[rows:] = torch.nan
    emptied = [torch.randint(0, len(child_codes), (3000,), device="cuda").unique(), *[child_codes[:0].long()] * 7]
    call = {
        "logits": logits,
        "nodes": torch.nn.functional.pad(nodes, (0, 700 - rows), value=10**9),
        "row_starts": starts_of(beams + unused),
        "child_starts": starts_of(counts),
        "child_codes": child_codes,
        "node_masks": torch.rand(2, len(child_codes), device="cuda") < 0.9,
        "mask_index": torch.tensor([0, 1] * 4),
        "emptied_starts": starts_of([len(own) for own in emptied]),
        "emptied_nodes": torch.cat([*emptied, torch.full((50,), -9, device="cuda")]),
        "others": others,
    }
    return {name: x.to("cuda", torch.int32 if x.dtype == torch.int64 else x.dtype) for name, x in call.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("children", [0, 1, 183, 5000, CODES])
def test_equals_the_reference(children: int, dtype: torch.dtype) -> None:
    call = draw(children, [300, 1, 77], 30, dtype)
    got, want = legal_normalizer(**call), reference(**call)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
    assert (got[378:] == -math.inf).all()


def test_replays_with_other_data() -> None:
    """Captured once, the graph's next replay reads what its buffers hold by then: no pairs, then some."""
    one, other = draw(183, [300, 1, 77], 0), draw(183, [10, 250], 40)
    shared = {name: x.clone() for name, x in one.items()}
    capacity = max(len(one["emptied_nodes"]), len(other["emptied_nodes"]))
    shared["emptied_nodes"] = torch.zeros(capacity, dtype=torch.int32, device="cuda")
    legal_normalizer(**shared)
    graph = torch.cuda.CUDAGraph()
    with collector_resting(), torch.cuda.graph(graph):
        captured = legal_normalizer(**shared)
    for call in (other, one):
        for name, x in call.items():
            shared[name][: len(x)].copy_(x)
        graph.replay()
        assert torch.equal(captured, legal_normalizer(**call))
