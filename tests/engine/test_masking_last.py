"""Selection that scores all codes and masks afterwards, which the ablation times, against the engine's own."""

from __future__ import annotations

import random

import pytest
import torch

from tests.kernels.test_beam_select import Case, random_case, starts_of
from xgr_kernels import beam_select
from xgr_stream.engine.ablation import select_masking_last


def padded(case: Case, rows: int) -> Case:
    """The same beams with as many rows behind them that are nobody's."""
    case.logits = torch.cat([case.logits, torch.randn(rows, case.logits.shape[1])])
    case.scores = torch.cat([case.scores, torch.zeros(rows)])
    case.nodes = torch.cat([case.nodes, torch.zeros(rows, dtype=torch.int32)])
    if case.log_normalizer is not None:
        case.log_normalizer = torch.cat([case.log_normalizer, torch.randn(rows)])
    return case


@pytest.mark.parametrize("seed", range(60))
def test_it_selects_the_same(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    requests, beams, width = rng.choice([1, 2, 4, 8]), rng.choice([1, 3, 17, 50]), rng.choice([1, 4, 20, 65])
    normalizer = rng.choice(["level", "given"])
    case = random_case(rng, requests=requests, rows=beams, width=width, normalizer=normalizer)
    case.emptied_nodes, case.emptied_starts = torch.empty(0, dtype=torch.int32), starts_of([0] * requests)
    case = padded(case, rng.choice([0, 1, 48]))
    case.num_out = requests * width + rng.choice([0, 7])

    mine, engine = case.select(select_masking_last), case.select(beam_select)
    assert torch.equal(mine.nodes, engine.nodes)
    assert torch.equal(mine.parents, engine.parents)
    torch.testing.assert_close(mine.scores, engine.scores, atol=1e-4, rtol=0)
