"""mask_flip against masks made anew, item by item."""

from __future__ import annotations

import random

import pytest
import torch

from tests.kernels.tries import random_case
from xgr_kernels import mask_flip


@pytest.mark.parametrize("seed", range(30))
def test_equals_masks_made_anew(device: str, seed: int) -> None:
    rng = random.Random(seed)
    case = random_case(rng, device)
    for count in (0, 1, 5, 300):
        rows = [rng.choice(list(case.sids)) for _ in range(count)]
        present = {row: rng.randint(0, 1) for row in rows}
        if rng.random() < 0.3:
            present = dict.fromkeys(rows, rng.randint(0, 1))
        live = case.tree.live.clone()
        mask_flip(case.tree, case.packed(rows, [present[row] for row in rows]))
        for row, value in present.items():
            live[row] = bool(value)
        assert torch.equal(case.tree.live, live)
        found = [mask.clone() for mask in case.tree.masks]
        case.fill()
        for own, expected in zip(found, case.tree.masks, strict=True):
            assert torch.equal(own, expected)


def test_a_node_with_many_children_is_looked_through_to_its_end(device: str) -> None:
    """Of 300 items under one node the last alone stays."""
    case = random_case(random.Random(0), device)
    while case.levels != 2 or len(case.sids) < 40:
        case = random_case(random.Random(len(case.sids) + 7 * case.levels + random.randrange(999)), device, items=400)
    case.tree.live[:] = True
    case.tree.allowed[:] = True
    case.fill()
    rows = case.in_order(set(case.sids))
    mask_flip(case.tree, case.packed(rows[:-1], [0] * (len(rows) - 1)))
    last = case.tree.masks
    assert all(mask[0].sum() == 1 for mask in last)
    mask_flip(case.tree, case.packed(rows[-1:], [0]))
    assert not any(mask.any() for mask in last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flips: flips[1:], r"flips must have shape \[\d, any\], not \[\d, 1\]"),
        (lambda flips: flips.long(), "flips must be contiguous int32, not torch.int64"),
    ],
)
def test_bad_arguments_are_named(change, message: str) -> None:  # type: ignore[no-untyped-def]
    case = random_case(random.Random(1), "cpu")
    with pytest.raises(ValueError, match=message):
        mask_flip(case.tree, change(case.packed(list(case.sids)[:1], [1])))


def test_masks_that_do_not_fit_each_other_are_named() -> None:
    tree = random_case(random.Random(1), "cpu").tree
    with pytest.raises(ValueError, match=r"allowed must have shape \[any, \d+\], not \[1, 1\]"):
        tree._replace(allowed=torch.ones(1, 1, dtype=torch.bool)).check()
    with pytest.raises(ValueError, match=r"live, allowed and masks must be torch\.bool, not"):
        tree._replace(live=tree.live.int()).check()
    with pytest.raises(ValueError, match="child_starts must be as many as masks, at least 1, not 0 and"):
        tree._replace(child_starts=()).check()
