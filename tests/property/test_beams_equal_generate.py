"""`"vocabulary"` and `"legal"` beams equal transformers' `generate` with a prefix constraint, without and with
`renormalize_logits`; on each model family."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.property.oracle import EPSILON, Oracle
from tests.property.users import ask, record
from xgr_stream.catalog import Catalog
from xgr_stream.config import EngineConfig
from xgr_stream.engine import Engine
from xgr_stream.model import load_model
from xgr_stream.testing.models import save_tiny_model, tiny_checkpoint, tiny_items

CODES = (7, 5, 6)
XGR = {"prompt": [0], "tail": [1, 2]}
# One item to a semantic ID: `generate` returns IDs, the engine items.
SIDS = random.Random(3).sample(list(itertools.product(*map(range, CODES))), 40)
ITEMS = {**tiny_items(CODES, items=len(SIDS)), "sid": SIDS}
FAMILIES = {
    "qwen3": {},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_tiny_model(path, CODES, seed=5, config=FAMILIES[request.param], xgr=XGR)
    return path, AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def generate(
    model: PreTrainedModel, oracle: Oracle, context: list[int], width: int, renormalize: bool
) -> list[tuple[float, tuple[int, ...]]]:
    """(score, semantic ID) of the finished beams, best first."""
    sids = set(oracle.sid_of.values())

    def allowed(_: int, sequence: torch.Tensor) -> list[int]:
        chosen = sequence[len(context) :].tolist()
        beam = tuple(t - oracle.token(level, 0) for level, t in enumerate(chosen))
        codes = sorted({sid[len(beam)] for sid in sids if sid[: len(beam)] == beam})
        # A dead beam (score of minus infinity) needs some token to go on with.
        return [oracle.token(len(beam), code) for code in codes] or [0]

    tokens = torch.tensor([context])
    output = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),  # or token 0 of the prompt would pass for padding
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=len(CODES),
        min_new_tokens=len(CODES),
        prefix_allowed_tokens_fn=allowed,
        renormalize_logits=renormalize,
        length_penalty=0.0,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    beams = []
    chosen = output.sequences[:, len(context) :].tolist()
    for sequence, score in zip(chosen, output.sequences_scores.tolist(), strict=True):
        sid = tuple(t - oracle.token(level, 0) for level, t in enumerate(sequence))
        if sid in sids and score > -1e8:
            beams.append((score, sid))
    return beams


@pytest.mark.parametrize(("normalizer", "renormalize"), [("vocabulary", False), ("legal", True)])
@settings(max_examples=12)
@given(history=st.lists(st.sampled_from(ITEMS["item_id"]), min_size=1, max_size=9), width=st.integers(2, 30))
def test_beams_equal_generate(checkpoint, normalizer, renormalize, history, width):
    path, transformer = checkpoint
    model = load_model(path)
    _, _, xgr = tiny_checkpoint(CODES, xgr=XGR)
    oracle = Oracle(model, ITEMS, xgr)
    engine = Engine.load(model, Catalog.from_table(ITEMS, codes=CODES), config=EngineConfig(normalizer=normalizer))
    record(engine, "user", [(item, None) for item in history])

    expected = generate(transformer, oracle, oracle.context(history), width, renormalize)
    (response,) = ask(engine, ("user", width, width))
    assert len(expected) == len(response.items)
    scores = {sid: score for score, sid in expected}
    for mine, (score, _) in zip(response.items, expected, strict=True):
        assert abs(mine.score - score) < EPSILON
        assert abs(mine.score - scores[mine.sid]) < EPSILON
