"""beam_descend against one beam at a time."""

from __future__ import annotations

import random

import pytest
import torch

from xgr_kernels import beam_descend


def arguments(rng: random.Random, device: str) -> dict[str, object]:
    counts = [rng.choice([0, 1, 5, 17]) for _ in range(rng.randint(1, 9))]
    rows, before, steps = sum(counts) + rng.randint(1, 4), rng.randint(1, 30), rng.randint(1, 4)
    return {
        "parents": torch.randint(0, before, (rows,), device=device).int(),
        "nodes": torch.randint(-1, 200, (rows,), device=device).int(),
        "child_codes": torch.randint(0, 40, (200,), device=device).int(),
        "token_ids": torch.randperm(300, device=device)[:40],
        "embedding": torch.randn(300, 72, device=device),
        "row_starts": torch.tensor([0, *counts], device=device).cumsum(0).int(),
        "prefix_lengths": torch.randint(0, 99, (len(counts),), device=device).int(),
        "step": rng.randrange(steps),
        "ancestors": torch.randint(0, before, (before, steps), device=device).int(),
    }


@pytest.mark.parametrize("seed", range(10))
def test_equals_one_beam_at_a_time(device: str, seed: int) -> None:
    call = arguments(random.Random(seed), device)
    descent = beam_descend(**call)
    step, starts = call["step"], call["row_starts"].tolist()
    for row, (parent, node) in enumerate(zip(call["parents"].tolist(), call["nodes"].tolist(), strict=True)):
        ancestors = [*call["ancestors"][parent, :step].tolist(), row]
        assert descent.ancestors[row, : step + 1].tolist() == ancestors
        owner = [i for i in range(len(starts) - 1) if starts[i] <= row < starts[i + 1]]
        node = max(node, 0) if owner else 0
        assert int(descent.positions[row]) == (int(call["prefix_lengths"][owner[0]]) + step if owner else 0)
        token = call["token_ids"][call["child_codes"][node]]
        assert torch.equal(descent.hidden[row], call["embedding"][token])
    assert (descent.ancestors[:, step + 1 :] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 9}, r"step must be within the \d steps of ancestors, not 9"),
        ({"nodes": torch.zeros(0, dtype=torch.int32)}, r"nodes must have shape \[\d+\], not \[0\]"),
        ({"row_starts": torch.zeros(1).int()}, r"row_starts must have shape \[\d+\], not \[1\]"),
        ({"ancestors": torch.zeros(9, 9)}, "ancestors must be int32, not torch.float32"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_descend(**(arguments(random.Random(1), "cpu") | change))
