from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.test_settings import FULL, KINDS, VOCABULARY
from xgr_stream.errors import CheckpointError
from xgr_stream.model.settings import Settings
from xgr_stream.model.tokens import ItemTokens
from xgr_stream.model.vocabulary import read_vocabulary


def make_tokens(xgr: dict[str, Any], vocab_size: int = 101) -> ItemTokens:
    return ItemTokens(Settings.from_json(xgr), vocab_size, lambda: VOCABULARY)


def plain_encode(xgr: dict[str, Any], tokens: ItemTokens, sids: Any, actions: Any) -> list[int]:
    """Event by event, as docs/checkpoints.md tells it."""
    event = xgr.get("event", {})
    out: list[int] = []
    for sid, action in zip(sids, actions or [None] * len(sids), strict=True):
        if sid[0] >= 0:
            out += event.get("begin", []) + event.get("actions", {}).get(action, [])
            out += [int(tokens.token_ids[level][code]) for level, code in enumerate(sid)]
            out += event.get("end", [])
    return out


ids = st.lists(st.integers(0, 100), max_size=3)
events = st.fixed_dictionaries(
    {}, optional={"begin": ids, "end": ids, "actions": st.dictionaries(st.sampled_from(["view", "buy"]), ids)}
)
semantic_ids = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)) | st.just((-1, -1)), max_size=12)


@given(st.sampled_from(KINDS), events, semantic_ids, st.data())
def test_encode_equals_the_plain_loop(kind: Any, event: Any, sids: Any, data: st.DataObject) -> None:
    xgr = {"codes": [4, 3], "item_tokens": kind, "event": event}
    tokens = make_tokens(xgr)
    known = st.sampled_from(["view", "buy", "unheard-of", None])
    actions = data.draw(st.none() | st.lists(known, min_size=len(sids), max_size=len(sids)))
    encoded = tokens.encode(np.array(sids, np.int32).reshape(-1, 2), actions)
    assert encoded.dtype == np.int64
    assert encoded.tolist() == plain_encode(xgr, tokens, sids, actions)
    assert len(encoded) <= len(sids) * tokens.max_event_tokens


def test_a_context() -> None:
    tokens = make_tokens(FULL)
    sids = np.array([[0, 2], [-1, -1], [3, 0]], np.int32)
    assert tokens.encode(sids, ["buy", "view", None]).tolist() == [4, 7, 8, 10, 16, 5, 4, 13, 14, 5]
    assert (tokens.prompt.tolist(), tokens.tail.tolist()) == ([1, 2], [3])
    assert tokens.max_event_tokens == 1 + 2 + 2 + 1
    assert tokens.context_tokens(events=10) == 2 + 10 * 6 + 1 + 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (KINDS[0], [[10, 11, 12, 13], [14, 15, 16]]),
        (KINDS[1], [[10, 11, 12, 13], [14, 15, 16]]),
        (KINDS[2], [[1, 5, 9, 4], [2, 3, 4]]),
        (KINDS[3], [[20, 21, 22, 23], [24, 25, 26]]),
    ],
    ids=["offset", "offsets", "table", "pattern"],
)
def test_token_ids(kind: dict[str, Any], expected: list[list[int]]) -> None:
    assert [ids.tolist() for ids in make_tokens({"codes": [4, 3], "item_tokens": kind}).token_ids] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": [102, 3]}, "a level of 102 codes does not fit the checkpoint's vocabulary of 101"),
        ({"item_tokens": {"offset": 95}}, "item tokens of level 1 reach from 99 to 101, beyond .* vocabulary of 101"),
        ({"item_tokens": {"table": [[1, 2, 3, 1], [1, 2, 3]]}}, "item tokens of level 0 must differ"),
        ({"item_tokens": KINDS[3], "codes": [5, 3]}, "lacks 1 of 5 item tokens of a level, the first is '<a_4>'"),
        ({"prompt": [101]}, "prompt holds token 101, beyond the checkpoint's vocabulary of 101"),
        ({"tail": [200]}, "tail holds token 200"),
        ({"event": {"actions": {"view": [101]}}}, "event.actions.view holds token 101"),
    ],
    ids=str,
)
def test_tokens_that_do_not_fit_the_vocabulary(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        make_tokens(FULL | change)


def test_check_catalog() -> None:
    tokens = make_tokens(FULL)
    tokens.check_catalog((4, 3))
    tokens.check_catalog((2, 3))
    with pytest.raises(CheckpointError, match="have 3 levels, the checkpoint's have 2"):
        tokens.check_catalog((4, 3, 1))
    with pytest.raises(CheckpointError, match="the catalog has 5 codes at level 1, the checkpoint has tokens for 3"):
        tokens.check_catalog((4, 5))


def write(path: Path, **files: object) -> None:
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))


def test_names_from_a_tokenizer(tmp_path: Path) -> None:
    added = [{"id": 7, "content": "<a_0>", "special": True}]
    write(tmp_path, tokenizer={"model": {"type": "BPE", "vocab": {"hi": 0, "<a_1>": 1}}, "added_tokens": added})
    assert read_vocabulary(tmp_path) == {"hi": 0, "<a_1>": 1, "<a_0>": 7}


def test_names_from_an_older_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, vocab={"hi": 0}, added_tokens={"<a_0>": 7})
    assert read_vocabulary(tmp_path) == {"hi": 0, "<a_0>": 7}


def test_names_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor vocab.json"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("tokenizer", [[], {"added_tokens": {"a": 1}}, {"added_tokens": [1]}, {"model": {"vocab": []}}])
def test_damaged_tokenizer(tmp_path: Path, tokenizer: object) -> None:
    write(tmp_path, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_vocabulary(tmp_path)
