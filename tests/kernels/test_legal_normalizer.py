"""legal_normalizer against a loop over the legal codes of each prefix, whichever of two nodes they are below."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from xgr_kernels import legal_normalizer
from xgr_kernels.mask_exclude import NO_NODE

EPSILON = 1e-4


@dataclass
class Case:
    """One call's arguments, by the wrapper's names."""

    logits: Tensor
    nodes: Tensor
    row_starts: Tensor
    child_starts: Tensor
    child_codes: Tensor
    node_masks: Tensor
    mask_index: Tensor
    emptied_starts: Tensor
    emptied_nodes: Tensor
    others: Tensor

    def normalizers(self, run) -> Tensor:
        return run(**vars(self))


def starts_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def random_case(rng: random.Random, *, requests: int | None = None, codes: int | None = None) -> Case:
    """Beams of some requests over a random level of two tries; what isn't given is drawn."""
    requests = requests or rng.randint(1, 5)
    codes = codes or rng.choice([1, 2, 7, 33, 130])
    first, second = rng.randint(1, 30), rng.randint(0, 12)  # parents of each trie
    child_counts = [rng.choice([0, 1, codes, rng.randint(0, codes)]) for _ in range(first)]
    child_counts += [rng.choice([0, 1, rng.randint(0, codes)]) for _ in range(second)]
    child_codes = [code for count in child_counts for code in sorted(rng.sample(range(codes), count))]
    children, masks = len(child_codes), rng.randint(1, 3)
    shared = rng.randint(0, min(first, second))
    ours, theirs = sorted(rng.sample(range(first), shared)), sorted(rng.sample(range(first, first + second), shared))
    unused = rng.randint(1, 9)
    emptied = [sorted(rng.sample(range(children), rng.randint(0, min(children, 20)))) for _ in range(requests)]
    for own in emptied:  # numbers behind them that are no node's
        own += [NO_NODE - i for i in range(rng.choice([0, 0, 3, 40]), 0, -1)]
    beams = [rng.choice([1, 3, 17]) for _ in range(requests)]
    nodes = [rng.choice([-1, *range(first + second)]) for _ in range(sum(beams))]
    return Case(
        logits=torch.randn(sum(beams), codes) * rng.choice([0.1, 1.0, 8.0]),
        nodes=torch.tensor(nodes, dtype=torch.int32),
        row_starts=starts_of(beams),
        child_starts=starts_of(child_counts),
        child_codes=torch.tensor(child_codes, dtype=torch.int32),
        node_masks=torch.rand(masks, children) < rng.choice([0.3, 0.9, 1.0]),
        mask_index=torch.tensor([rng.randrange(masks) for _ in range(requests)], dtype=torch.int32),
        emptied_starts=starts_of([len(own) for own in emptied]),
        emptied_nodes=torch.tensor([node for own in emptied for node in own], dtype=torch.int32),
        others=torch.tensor([[*ours, *theirs, *[NO_NODE] * unused], [*theirs, *ours, *[-1] * unused]]).int(),
    )


def legal_codes(case: Case, request: int, node: int) -> set[int]:
    first, last = case.emptied_starts[request : request + 2].tolist()
    emptied = set(case.emptied_nodes[first:last].tolist())
    mask = case.node_masks[case.mask_index[request]].tolist()
    children = range(*case.child_starts[node : node + 2].tolist())
    return {int(case.child_codes[child]) for child in children if mask[child] and child not in emptied}


def expected(case: Case) -> list[float]:
    """Of all rows of requests."""
    others = {node: other for node, other in zip(*case.others.tolist(), strict=True) if other >= 0}
    found = []
    for request, (first, last) in enumerate(pairwise(case.row_starts.tolist())):
        for row in range(first, last):
            node = int(case.nodes[row])
            places = [] if node < 0 else [node, *([others[node]] if node in others else [])]
            codes = set().union(*(legal_codes(case, request, place) for place in places))
            own = case.logits[row].double()[sorted(codes)]
            found.append(float(own.logsumexp(0)) if codes else -math.inf)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_equals_a_loop_over_legal_codes(run, seed: int) -> None:
    torch.manual_seed(seed)
    case = random_case(random.Random(seed))
    assert case.normalizers(run).tolist() == pytest.approx(expected(case), abs=EPSILON)


@pytest.mark.parametrize("seed", range(6))
def test_more_codes_than_a_program_takes_at_once(run, seed: int) -> None:
    torch.manual_seed(seed)
    case = random_case(random.Random(seed), requests=2, codes=2500)
    found, wanted = case.normalizers(run).tolist(), expected(case)
    assert found == pytest.approx(wanted, abs=EPSILON)


@pytest.mark.parametrize("seed", range(6))
def test_both_nodes_of_a_prefix_have_the_same(run, seed: int) -> None:
    """Whether the other one's row is there or not."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    cases = (random_case(rng, requests=1, codes=33) for _ in range(100))
    case = next(one for one in cases if one.others[1, 0] >= 0)
    own, others = case.others[:, case.others[1] >= 0]
    row = torch.randn(1, 33)
    alone = replace(case, logits=row.repeat(len(own), 1), nodes=own, row_starts=starts_of([len(own)]))
    found = alone.normalizers(run)
    assert found.tolist() == pytest.approx(expected(alone), abs=EPSILON)
    assert torch.equal(replace(alone, nodes=others).normalizers(run), found)


@pytest.mark.parametrize("seed", range(6))
def test_padding_does_not_matter(run, seed: int) -> None:
    """Rows, requests and emptied nodes of a bucket that no request uses."""
    torch.manual_seed(seed)
    case = random_case(random.Random(seed))
    alone, rows = case.normalizers(run), len(case.nodes)
    case.logits = torch.cat([case.logits, torch.full((5, case.logits.shape[1]), math.nan)])
    case.nodes = torch.cat([case.nodes, torch.full((5,), 10**9, dtype=torch.int32)])
    for name in ("row_starts", "emptied_starts"):
        starts = getattr(case, name)
        setattr(case, name, torch.cat([starts, starts[-1:].expand(3)]))
    case.mask_index = torch.cat([case.mask_index, torch.zeros(3, dtype=torch.int32)])
    case.emptied_nodes = torch.cat([case.emptied_nodes, torch.full((7,), -5, dtype=torch.int32)])
    padded = case.normalizers(run)
    assert torch.equal(padded[:rows], alone)
    assert (padded[rows:] == -math.inf).all()


def test_logits_may_be_a_slice_of_others(run) -> None:
    case = random_case(random.Random(1), requests=3, codes=33)
    wide = torch.randn(len(case.nodes), 70)
    for own in (wide[:, 5:38], wide[:, ::2][:, :33]):
        case.logits = own
        assert case.normalizers(run).tolist() == pytest.approx(expected(case), abs=EPSILON)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": torch.zeros(99, dtype=torch.int32)}, r"nodes must have shape \[\d+\], not \[99\]"),
        ({"row_starts": torch.zeros(2)}, "nodes, row_starts, .* must be int32"),
        ({"node_masks": torch.zeros(1, 1)}, r"node_masks must have shape \[any, \d+\], not \[1, 1\]"),
        ({"others": torch.zeros(3, 1)}, r"others must have shape \[2, any\], not \[3, 1\]"),
        ({"others": torch.zeros(2, 0)}, "others must have 1 column at least, not 0"),
        ({"others": torch.zeros(2, 1)}, ".* and others must be int32"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    case = random_case(random.Random(6), requests=1, codes=33)
    with pytest.raises(ValueError, match=message):
        legal_normalizer(**(vars(case) | change))
