"""Keys whose order draws leaves without replacement, with the exact probabilities."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xgr_kernels import beam_perturb, beam_select

CODES = 4
# Two levels: nodes 0, 1, 2 with codes 0, 2, 3 below the root; leaves below them.
CHILD_STARTS = (torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 3, 4, 6], dtype=torch.int32))
CHILD_CODES = (torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([0, 1, 3, 2, 0, 3], dtype=torch.int32))
LEAVES = 6
NO_OTHERS = torch.tensor([[0x7FFFFFFF], [-1]], dtype=torch.int32)
SEEDS = 40_000


def logits_of(level: int, node: int) -> list[float]:
    return torch.randn(CODES, generator=torch.Generator().manual_seed(10 * level + node)).mul(1.5).tolist()


def draw(seeds: Tensor, width: int, temperature: float, illegal: tuple[int, ...] = (), **more: Any) -> Tensor:
    """The leaves of each seed, best key first: [seeds, width]."""
    requests = len(seeds)
    keys, log_probs = torch.zeros(requests), torch.zeros(requests)
    nodes = torch.zeros(requests, dtype=torch.int32)
    row_starts = torch.arange(requests + 1, dtype=torch.int32)
    for level in range(2):
        table = torch.tensor([logits_of(level, node) for node in range(3)])
        logits = table[nodes.clamp(min=0).long()]
        masks = torch.ones(1, len(CHILD_CODES[level]), dtype=torch.bool)
        if level:
            masks[0, list(illegal)] = False
        arguments: dict[str, Any] = {
            "row_starts": row_starts,
            "child_starts": CHILD_STARTS[level],
            "child_codes": CHILD_CODES[level],
            "node_masks": masks,
            "mask_index": torch.zeros(requests, dtype=torch.int32),
            "emptied_starts": torch.zeros(requests + 1, dtype=torch.int32),
            "emptied_nodes": torch.zeros(0, dtype=torch.int32),
        }
        if level and "emptied" in more:
            arguments |= {"emptied_starts": more["emptied"][0], "emptied_nodes": more["emptied"][1]}
        children = beam_perturb(
            logits, keys, log_probs, nodes, others=NO_OTHERS,
            temperatures=torch.full((requests,), temperature), seeds=seeds, level=level, **arguments,
        )  # fmt: skip
        best = torch.where(keys > -torch.inf, children.keys.amax(1), keys)
        torch.testing.assert_close(best, keys, rtol=0, atol=1e-6)  # the best child has its beam's key
        out_starts = torch.arange(requests + 1, dtype=torch.int32) * min(width, (3, LEAVES)[level])
        chosen = beam_select(
            children.keys, torch.zeros(len(keys)).masked_fill(keys == -torch.inf, -torch.inf), nodes,
            out_starts=out_starts, log_normalizer=torch.zeros(len(keys)), num_out=int(out_starts[-1]), **arguments,
        )  # fmt: skip
        code = CHILD_CODES[level][chosen.nodes.clamp(min=0).long()].long()
        log_probs = log_probs[chosen.parents.long()] + children.log_probs[chosen.parents.long(), code]
        keys, nodes, row_starts = chosen.scores, chosen.nodes, out_starts
    return nodes.view(requests, -1)


def exact(temperature: float, illegal: tuple[int, ...] = ()) -> np.ndarray:
    """Each leaf's probability. [leaves]"""
    found = np.zeros(LEAVES)

    def softmax(level: int, node: int, children: list[int]) -> dict[int, float]:
        row = logits_of(level, node)
        weights = {child: np.exp(row[int(CHILD_CODES[level][child])] / temperature) for child in children}
        return {child: float(weight / sum(weights.values())) for child, weight in weights.items()}

    first = softmax(0, 0, [0, 1, 2])
    for node, probability in first.items():
        below = range(int(CHILD_STARTS[1][node]), int(CHILD_STARTS[1][node + 1]))
        for leaf, conditional in softmax(1, node, [leaf for leaf in below if leaf not in illegal]).items():
            found[leaf] = probability * conditional
    return found


def within(counts: np.ndarray, expected: np.ndarray, draws: int) -> None:
    """Counts within 4.5 standard errors of what is expected, and a few more where that is less than one."""
    errors = np.sqrt(expected * (1 - expected) * draws)
    assert (np.abs(counts - draws * expected) <= 4.5 * errors + 3 * (expected > 0)).all(), (counts, draws * expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("illegal", [(), (1,)])
def test_the_first_two_are_drawn_without_replacement(temperature: float, illegal: tuple[int, ...]) -> None:
    leaves = draw(torch.arange(SEEDS), 2, temperature, illegal).numpy()
    probabilities = exact(temperature, illegal)
    within(np.bincount(leaves[:, 0], minlength=LEAVES), probabilities, SEEDS)
    pairs = np.zeros((LEAVES, LEAVES))
    np.add.at(pairs, (leaves[:, 0], leaves[:, 1]), 1)
    expected = np.zeros_like(pairs)
    for a, b in itertools.permutations(range(LEAVES), 2):
        expected[a, b] = probabilities[a] * probabilities[b] / (1 - probabilities[a])
    within(pairs.ravel(), expected.ravel(), SEEDS)


def test_three_of_six_are_included_as_often_as_they_must_be() -> None:
    leaves = draw(torch.arange(SEEDS) + 10**12, 3, 1.0).numpy()
    probabilities = exact(1.0)
    expected = np.zeros(LEAVES)
    for order in itertools.permutations(range(LEAVES), 3):
        left, chance = 1.0, 1.0
        for leaf in order:
            chance *= probabilities[leaf] / left
            left -= probabilities[leaf]
        expected[list(order)] += chance
    within(np.bincount(leaves.ravel(), minlength=LEAVES), expected, SEEDS)


def test_more_beams_begin_with_the_same_leaves_and_company_changes_nothing() -> None:
    seeds = torch.tensor([3, -(1 << 62), 5, 2**63 - 1])
    everything = draw(seeds, 6, 0.7)
    assert sorted(everything[0].tolist()) == list(range(LEAVES))
    for width in range(1, 6):
        assert torch.equal(draw(seeds, width, 0.7), everything[:, :width])
    for i in range(4):
        assert torch.equal(draw(seeds[i : i + 1], 6, 0.7)[0], everything[i])


def test_rows_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(torch.arange(50), 4, 1.0)
    monkeypatch.setattr(importlib.import_module("xgr_kernels.beam_perturb.reference"), "BLOCK", 3 * CODES)
    assert torch.equal(draw(torch.arange(50), 4, 1.0), whole)


def test_emptied_nodes_are_those_of_their_own_request() -> None:
    starts = torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    nodes = torch.tensor([0, 5, 1, 2, 0, 0], dtype=torch.int32)  # the last two belong to no request
    leaves = draw(torch.tensor([1, 2, 3]), 6, 1.0, emptied=(starts, nodes))
    found = [{leaf for leaf in row if leaf >= 0} for row in leaves.tolist()]
    assert found == [{1, 2, 3, 4}, {0, 1, 2, 3, 4, 5}, {0, 3, 4, 5}]
    nodes[1] = 0x7FFFFFFE  # no node's
    leaves = draw(torch.tensor([1, 2, 3]), 6, 1.0, emptied=(starts, nodes))
    found = [{leaf for leaf in row if leaf >= 0} for row in leaves.tolist()]
    assert found == [{1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}, {0, 3, 4, 5}]


def test_a_prefix_of_two_tries_is_one() -> None:
    """Node 0 of the first trie and node 1 of the second: what is below both, below one, or below neither."""
    codes, emptied = 5, [4]
    below = ([0, 1, 2, 4], [1, 2, 3])  # nodes 0 to 3, and 4 to 6
    masks = torch.tensor([[True, True, False, True, True, True, True]])  # of code 2 the first trie's is not legal
    legal = ([0, 1, 4], [2, 3])  # of code 1 the second trie's is emptied
    logits, key, log_prob, seeds = torch.randn(1, codes), -0.7, -0.3, torch.tensor([5])
    others = torch.tensor([[0, 1, 0x7FFFFFFF], [1, 0, -1]], dtype=torch.int32)

    def perturbed(*nodes: int, **change: Any) -> Any:
        rows = len(nodes)
        return beam_perturb(
            logits.repeat(rows, 1),
            torch.full((rows,), key),
            torch.full((rows,), log_prob),
            torch.tensor(nodes, dtype=torch.int32),
            **{
                "row_starts": torch.tensor([0, rows], dtype=torch.int32),
                "child_starts": torch.tensor([0, 4, 7], dtype=torch.int32),
                "child_codes": torch.tensor([*below[0], *below[1]], dtype=torch.int32),
                "node_masks": masks,
                "mask_index": torch.zeros(1, dtype=torch.int32),
                "emptied_starts": torch.tensor([0, len(emptied)], dtype=torch.int32),
                "emptied_nodes": torch.tensor(emptied, dtype=torch.int32),
                "others": others,
                "temperatures": torch.tensor([0.8]),
                "seeds": seeds,
                "level": 1,
                **change,
            },
        )

    both = perturbed(0, 1)
    for row in range(2):
        there = torch.zeros(codes, dtype=torch.bool)
        there[legal[row]] = True
        for alone, together in zip(perturbed(row), both, strict=True):
            assert torch.equal(alone[0], together[row])  # whether the other row is there or not
            assert torch.equal(together[row] > -torch.inf, there)
    assert both.keys.max() == pytest.approx(key, abs=1e-6)
    assert both.log_probs.exp().sum() == pytest.approx(1, abs=1e-6)
    everything = {"node_masks": torch.ones_like(masks), "emptied_starts": torch.zeros(2, dtype=torch.int32)}
    for keys_or_log_probs in perturbed(0, 1, **everything):
        assert torch.equal(keys_or_log_probs[0, [1, 2]], keys_or_log_probs[1, [1, 2]])
    # One trie of the same codes, whose first four nodes have the same numbers: noise is that of the first trie's node.
    one = {
        "child_starts": torch.tensor([0, 5], dtype=torch.int32),
        "child_codes": torch.arange(5, dtype=torch.int32),
        "node_masks": torch.ones(1, 5, dtype=torch.bool),
        "emptied_starts": torch.zeros(2, dtype=torch.int32),
        "others": None,
    }
    split = {
        "child_starts": torch.tensor([0, 4, 6], dtype=torch.int32),
        "child_codes": torch.tensor([0, 1, 2, 3, 1, 4], dtype=torch.int32),
        "node_masks": torch.tensor([[True, False, True, True, True, True]]),
        "emptied_starts": torch.zeros(2, dtype=torch.int32),
    }
    torch.testing.assert_close(perturbed(0, **one).log_probs[0], perturbed(0, 1, **split).log_probs.amax(0))
    # Code 4 is another node's there, so that only the others' order is the same.
    want, got = perturbed(0, **one).keys[0, :4], perturbed(0, 1, **split).keys.amax(0)[:4]
    assert torch.equal(want.argsort(), got.argsort())


def test_a_low_temperature_is_greedy_and_nothing_is_not_a_number() -> None:
    leaves = draw(torch.arange(50), 6, 1e-4)
    assert (leaves[:, 0] == int(exact(0.01).argmax())).all()
    assert (leaves >= 0).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", torch.zeros(1)),
        ("seeds", torch.zeros(2, dtype=torch.int64)),
        ("temperatures", torch.ones(2)),
        ("others", torch.zeros(1, 2)),
        ("level", -1),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: str, value: object) -> None:
    arguments: dict[str, Any] = {
        "row_starts": torch.tensor([0, 1], dtype=torch.int32),
        "child_starts": CHILD_STARTS[0],
        "child_codes": CHILD_CODES[0],
        "node_masks": torch.ones(1, 3, dtype=torch.bool),
        "mask_index": torch.zeros(1, dtype=torch.int32),
        "emptied_starts": torch.zeros(2, dtype=torch.int32),
        "emptied_nodes": torch.zeros(0, dtype=torch.int32),
        "others": NO_OTHERS,
        "temperatures": torch.ones(1),
        "seeds": torch.zeros(1, dtype=torch.int64),
        "level": 0,
        name: value,
    }
    with pytest.raises(ValueError, match=rf"^{name} must "):
        beam_perturb(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.int32), **arguments)
