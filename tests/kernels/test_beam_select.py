"""beam_select against a loop that scores every legal child, takes full log-softmaxes and sorts everything."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from xgr_kernels import BeamSelection, beam_select

EPSILON = 1e-4


@dataclass
class Case:
    """One call's arguments, by the wrapper's names."""

    logits: Tensor
    scores: Tensor
    nodes: Tensor
    row_starts: Tensor
    out_starts: Tensor
    child_starts: Tensor
    child_codes: Tensor
    node_masks: Tensor
    mask_index: Tensor
    emptied_starts: Tensor
    emptied_nodes: Tensor
    log_normalizer: Tensor | None
    num_out: int | None = None
    early_stop: bool = True

    def select(self, run) -> BeamSelection:
        return BeamSelection(*run(**vars(self)))


def starts_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def random_case(
    rng: random.Random,
    *,
    requests: int | None = None,
    rows: int | None = None,
    codes: int | None = None,
    width: int | None = None,
    normalizer: str | None = None,
    dead: float = 0.2,
    dense: bool = False,
) -> Case:
    """Beams of some requests over a random level of a trie; what isn't given is drawn."""
    requests = requests or rng.randint(1, 5)
    codes = codes or rng.choice([1, 2, 7, 33, 130])
    normalizer = normalizer or rng.choice(["level", "given"])
    beams = [rows or rng.choice([1, 1, 3, 17, 40]) for _ in range(requests)]
    parents = max(beams) + rng.randint(0, 20)
    child_counts = [codes if dense else rng.choice([0, 1, codes, rng.randint(0, codes)]) for _ in range(parents)]
    child_codes = [code for count in child_counts for code in sorted(rng.sample(range(codes), count))]
    children, masks = len(child_codes), rng.randint(1, 3)
    emptied = [sorted(rng.sample(range(children), rng.randint(0, min(children, 9)))) for _ in range(requests)]
    if dense:
        masks, emptied = 1, [[] for _ in range(requests)]
    for own in emptied:  # numbers behind them that are no node's
        own += [0x7FFFFFFF - i for i in range(rng.choice([0, 0, 3, 40]), 0, -1)]
    scores = torch.randn(sum(beams)) * rng.choice([0.1, 3.0])
    scores[torch.rand(sum(beams)) < dead] = -math.inf
    nodes = torch.tensor([node for count in beams for node in rng.sample(range(parents), count)])
    return Case(
        logits=torch.randn(sum(beams), codes) * rng.choice([0.1, 1.0, 8.0]),
        scores=scores,
        nodes=nodes.masked_fill(scores == -math.inf, -1).int(),
        row_starts=starts_of(beams),
        out_starts=starts_of([width or rng.choice([1, 4, 20, 65]) for _ in range(requests)]),
        child_starts=starts_of(child_counts),
        child_codes=torch.tensor(child_codes, dtype=torch.int32),
        node_masks=torch.rand(masks, children) < rng.choice([0.3, 0.9, 1.0])
        if not dense
        else torch.ones(1, children).bool(),
        mask_index=torch.tensor([rng.randrange(masks) for _ in range(requests)], dtype=torch.int32),
        emptied_starts=starts_of([len(nodes) for nodes in emptied]),
        emptied_nodes=torch.tensor([node for nodes in emptied for node in nodes], dtype=torch.int32),
        log_normalizer=torch.randn(sum(beams)) + 9 if normalizer == "given" else None,
    )


def expected(case: Case) -> list[list[tuple[float, int, int]]]:
    """(score, parent, node) of every candidate of each request, best first."""
    return [sorted(_candidates(case, request), key=lambda c: (-c[0], c[2])) for request in range(len(case.mask_index))]


def _candidates(case: Case, request: int) -> list[tuple[float, int, int]]:
    found = []
    emptied = set(case.emptied_nodes[case.emptied_starts[request] : case.emptied_starts[request + 1]].tolist())
    for row in range(case.row_starts[request], case.row_starts[request + 1]):
        if case.scores[row] == -math.inf:
            continue
        parent = case.nodes[row]
        mask = case.node_masks[case.mask_index[request]]
        children = [
            node
            for node in range(case.child_starts[parent], case.child_starts[parent + 1])
            if mask[node] and node not in emptied
        ]
        if not children:
            continue
        logits = case.logits[row].double()
        codes = [int(case.child_codes[node]) for node in children]
        normal = logits.logsumexp(0) if case.log_normalizer is None else case.log_normalizer[row].double()
        for node, code in zip(children, codes, strict=True):
            found.append((float(case.scores[row].double() + logits[code] - normal), row, node))
    return found


def check(case: Case, chosen: BeamSelection) -> None:
    for request, candidates in enumerate(expected(case)):
        first, last = int(case.out_starts[request]), int(case.out_starts[request + 1])
        by_node = {node: (score, parent) for score, parent, node in candidates}
        present = min(len(candidates), last - first)
        scores = chosen.scores[first:last].tolist()
        nodes = chosen.nodes[first:last].tolist()
        parents = chosen.parents[first:last].tolist()
        for place in range(present):
            assert scores[place] == pytest.approx(candidates[place][0], abs=EPSILON)
            score, parent = by_node[nodes[place]]
            assert scores[place] == pytest.approx(score, abs=EPSILON)
            assert parents[place] == parent
        assert len(set(nodes[:present])) == present
        order = list(zip((-score for score in scores[:present]), nodes[:present], strict=True))
        assert order == sorted(order)
        assert scores[present:] == [-math.inf] * (last - first - present)
        assert nodes[present:] == [-1] * (last - first - present)
        assert parents[present:] == [int(case.row_starts[request])] * (last - first - present)
        alive = (case.scores[case.row_starts[request] : case.row_starts[request + 1]] > -math.inf).sum()
        assert 0 <= int(chosen.beams_scanned[request]) <= int(alive)


@pytest.mark.parametrize("seed", range(60))
def test_equals_exhaustive_loop(run, seed: int) -> None:
    case = random_case(random.Random(seed))
    check(case, case.select(run))


@pytest.mark.parametrize("width", [4, 65])
def test_ties_go_to_the_smaller_node(run, width: int) -> None:
    """Of beams that stand at their nodes in any order: neither rows nor the order of scanning may settle a tie."""
    case = random_case(
        random.Random(3), requests=2, rows=11, codes=7, width=width, normalizer="level", dead=0.0, dense=True
    )
    case.logits.zero_()
    case.scores.zero_()
    assert (case.nodes.diff() < 0).any()
    chosen = case.select(run)
    check(case, chosen)
    smallest = [node for candidates in expected(case) for _, _, node in candidates[:width]]
    assert chosen.nodes.tolist() == smallest


@pytest.mark.parametrize("seed", range(1, 7))  # the largest by far is 0's
def test_padding_does_not_matter(run, seed: int) -> None:
    """Rows, requests, outputs and emptied nodes of a bucket that no request uses."""
    case = random_case(random.Random(seed))
    alone = case.select(run)
    rows, out = len(case.scores), int(case.out_starts[-1])
    case.logits = torch.cat([case.logits, torch.full((5, case.logits.shape[1]), math.nan)])
    case.scores = torch.cat([case.scores, torch.full((5,), math.nan)])
    case.nodes = torch.cat([case.nodes, torch.full((5,), 10**9, dtype=torch.int32)])
    if case.log_normalizer is not None:
        case.log_normalizer = torch.cat([case.log_normalizer, torch.full((5,), math.nan)])
    for name in ("row_starts", "out_starts", "emptied_starts"):
        starts = getattr(case, name)
        setattr(case, name, torch.cat([starts, starts[-1:].expand(3)]))
    case.mask_index = torch.cat([case.mask_index, torch.zeros(3, dtype=torch.int32)])
    case.emptied_nodes = torch.cat([case.emptied_nodes, torch.full((7,), -5, dtype=torch.int32)])
    case.num_out = out + 9
    padded = case.select(run)
    torch.testing.assert_close(padded.scores[:out], alone.scores)
    assert torch.equal(padded.nodes[:out], alone.nodes)
    assert torch.equal(padded.parents[:out], alone.parents)
    assert (padded.scores[out:] == -math.inf).all()
    assert (padded.nodes[out:] == -1).all()
    assert (padded.parents[out:] == 0).all()
    assert (padded.children_kept[-3:] == 0).all()
    assert rows == len(case.scores) - 5


@pytest.mark.parametrize("seed", range(6))
def test_early_stop_changes_only_what_is_scanned(run, seed: int) -> None:
    case = random_case(random.Random(seed), requests=2, rows=9, codes=130, width=4)
    stopped = case.select(run)
    case.early_stop = False
    scanned = case.select(run)
    check(case, scanned)
    assert torch.equal(stopped.nodes, scanned.nodes)
    assert (stopped.beams_scanned <= scanned.beams_scanned).all()
    assert (stopped.children_kept <= scanned.children_kept).all()


@pytest.mark.parametrize("normalizer", ["level", "given"])
def test_all_codes_are_children(run, normalizer: str) -> None:
    """Many codes, all of them children, some excluded: the pass over the logits serves their scores, too."""
    case = random_case(random.Random(7), requests=2, rows=3, codes=1024, width=4, normalizer=normalizer, dense=True)
    case.node_masks = torch.rand(case.node_masks.shape) < 0.9
    first = int(case.child_starts[int(case.nodes.max())])
    case.emptied_nodes = torch.arange(first, first + 3, dtype=torch.int32)
    case.emptied_starts = torch.tensor([0, 3, 3], dtype=torch.int32)
    check(case, case.select(run))


def test_as_many_codes_as_there_may_be(run) -> None:
    check(case := random_case(random.Random(8), requests=1, rows=2, codes=65_536, width=4), case.select(run))


def test_as_many_beams_as_there_may_be(run) -> None:
    """More beams than candidates, too."""
    for rows, width in ((40, 1024), (3, 1024)):
        case = random_case(random.Random(9), requests=1, rows=rows, codes=40, width=width)
        check(case, case.select(run))


def test_all_beams_dead(run) -> None:
    case = random_case(random.Random(4), dead=1.0)
    case.logits.fill_(math.nan)
    chosen = case.select(run)
    assert (chosen.scores == -math.inf).all()
    assert (chosen.nodes == -1).all()
    assert (chosen.beams_scanned == 0).all()


def test_a_leading_beam_spares_the_others(run) -> None:
    """One beam has enough children and the others' bounds lie below them: they are not scanned."""
    case = random_case(
        random.Random(5), requests=1, rows=7, codes=130, width=4, normalizer="level", dead=0.0, dense=True
    )
    case.scores[:] = torch.tensor([-90.0, -80.0, 0.0, -70.0, -60.0, -50.0, -40.0])
    chosen = case.select(run)
    check(case, chosen)
    assert chosen.beams_scanned.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_normalizer": torch.zeros(99)}, r"log_normalizer must have shape \[\d+\], not \[99\]"),
        ({"out_starts": torch.zeros(9, dtype=torch.int32)}, r"out_starts must have shape \[2\], not \[9\]"),
        ({"row_starts": torch.zeros(2)}, "nodes, row_starts, .* must be int32"),
        ({"num_out": 0}, r"num_out must be at least out_starts\[-1\], \d+, not 0"),
        ({"node_masks": torch.zeros(1, 1)}, r"node_masks must have shape \[any, \d+\], not \[1, 1\]"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    case = random_case(random.Random(6), requests=1, normalizer="level")
    with pytest.raises(ValueError, match=message):
        beam_select(**(vars(case) | change))
