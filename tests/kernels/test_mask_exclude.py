"""mask_exclude against nodes counted item by item."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from tests.kernels.tries import Case, random_case
from xgr_kernels import mask_exclude


def excluding(case: Case, requests: list[tuple[int, set[int]]]) -> list[list[list[int]]]:
    """Per level and request, what is written at its places; each request is (mask, excluded rows)."""
    device = case.tree.live.device
    rows = [row for _, own in requests for row in case.in_order(own)]
    starts = torch.tensor([0, *(len(own) for _, own in requests)]).cumsum(0).int()
    emptied = [torch.full((len(rows) + 5,), -7, dtype=torch.int32, device=device) for _ in range(case.levels)]
    mask_exclude(
        case.tree,
        case.keys(rows),
        starts=starts.to(device),
        mask_index=torch.tensor([mask for mask, _ in requests], device=device).int(),
        num_nodes=case.num_nodes,
        emptied=emptied,
    )
    for out in emptied:
        assert (out[len(rows) :] == -7).all()
    return [[out[first:last].tolist() for first, last in pairwise(starts.tolist())] for out in emptied]


@pytest.mark.parametrize("seed", range(30))
def test_equals_counting_item_by_item(device: str, seed: int) -> None:
    rng = random.Random(seed)
    case = random_case(rng, device, items=rng.choice([10, 60, 900]))
    rows = list(case.sids)
    requests = [
        (rng.randrange(len(case.tree.allowed)), set(rng.sample(rows, rng.choice([0, 1, len(rows) // 2, len(rows)]))))
        for _ in range(rng.randint(1, 4))
    ]
    for level, per_request in enumerate(excluding(case, requests)):
        for (mask, excluded), out in zip(requests, per_request, strict=True):
            legal = case.legal(mask)
            expected = case.nodes(legal, level) - case.nodes(legal - excluded, level)
            nodes = case.tree.masks[level].shape[1]
            assert out == sorted(set(out))
            assert [node for node in out if node < nodes] == sorted(expected)


def test_emptied_nodes_are_not_looked_for_among_other_requests(device: str) -> None:
    case = random_case(random.Random(3), device)
    case.tree.live[:] = True
    case.tree.allowed[:] = True
    case.fill()
    everything = set(case.sids)
    for per_request in excluding(case, [(0, everything), (0, set()), (0, everything)]):
        assert per_request[0][0] == per_request[2][0] == 0
        assert per_request[1] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": torch.zeros(1).int()}, r"starts must have shape \[2\], not \[1\]"),
        (
            {"starts": torch.zeros(2).long()},
            "starts, mask_index and num_nodes must be int32, not torch.int64, torch.int32, torch.int32",
        ),
        ({"num_nodes": torch.zeros(9).int()}, r"num_nodes must have shape \[\d\], not \[9\]"),
        ({"excluded": torch.zeros(1).int()}, r"excluded must be contiguous int64, not torch.int32 of strides \(1,\)"),
        ({"emptied": []}, r"emptied must be of \d levels, not 0"),
        (
            {"emptied": [torch.zeros(0).int()]},
            r"emptied of level 0 must be int32 with room for 1, not torch.int32 of \[0\]",
        ),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    case = random_case(random.Random(1), "cpu")
    call = {
        "excluded": case.keys(list(case.sids)[:1]),
        "starts": torch.zeros(2).int(),
        "mask_index": torch.zeros(1).int(),
        "num_nodes": case.num_nodes,
        "emptied": [torch.zeros(1).int()] * case.levels,
    }
    if change.get("emptied"):
        change = {"emptied": change["emptied"] * case.levels}
    with pytest.raises(ValueError, match=message):
        mask_exclude(case.tree, **(call | change))
