from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given

from tests.model.json_values import json_values, mutations
from xgr_stream.config import WindowConfig
from xgr_stream.errors import CheckpointError
from xgr_stream.model.settings import OffsetTokens, Settings
from xgr_stream.model.tokens import ItemTokens

FULL: dict[str, Any] = {
    "format": 1,
    "codes": [4, 3],
    "item_tokens": {"offset": 10},
    "prompt": [1, 2],
    "tail": [3],
    "event": {"begin": [4], "end": [5], "actions": {"view": [6], "buy": [7, 8]}},
    "normalizer": "legal",
    "window": {"max_events": 50, "stride": 10},
}
KINDS: list[dict[str, Any]] = [
    {"offset": 10},
    {"offsets": [10, 14]},
    {"table": [[1, 5, 9, 4], [2, 3, 4]]},
    {"pattern": "<{level}_{code}>", "levels": ["a", "b"]},
]
VOCABULARY = {f"<{level}_{code}>": 20 + 4 * i + code for i, level in enumerate("ab") for code in range(4)}


def test_every_field() -> None:
    assert Settings.from_json(FULL) == Settings(
        codes=(4, 3),
        item_tokens=OffsetTokens((10, 14)),
        prompt=(1, 2),
        tail=(3,),
        begin=(4,),
        end=(5,),
        actions={"view": (6,), "buy": (7, 8)},
        normalizer="legal",
        window=WindowConfig(50, 10),
    )


def test_only_codes_and_item_tokens_are_required() -> None:
    settings = Settings.from_json({"codes": [4, 3], "item_tokens": {"offset": 0}})
    assert settings.prompt == settings.tail == settings.begin == settings.end == ()
    assert settings.normalizer is None
    assert settings.window is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format must be an integer from 1 to 1, not 2"),
        ({"codes": None}, r"codes must be a list of 1 to 16 numbers of codes, one per level, not \[\]"),
        ({"codes": [4, 0]}, r"codes\[1\] must be an integer from 1"),
        ({"codes": 4}, "codes must be a list of integers, not 4"),
        ({"item_tokens": None}, "xgr.json must have the field 'item_tokens'"),
        ({"item_tokens": {}}, "item_tokens must have exactly one of offset, offsets, table, pattern"),
        ({"item_tokens": {"offset": 1, "table": []}}, "exactly one of"),
        ({"item_tokens": {"offset": -1}}, "item_tokens.offset must be an integer from 0"),
        ({"item_tokens": {"offset": 0, "levels": ["a"]}}, "item_tokens has the unknown field 'levels'"),
        ({"item_tokens": {"offsets": [0]}}, r"offsets must have one entry per level \(2\), not 1"),
        ({"item_tokens": {"table": [[1, 2, 3, 4], [5, 6]]}}, r"table\[1\] must hold 3 token ids \(codes\), not 2"),
        ({"item_tokens": {"pattern": "<{code}>", "levels": ["a", "b"]}}, "pattern must be a string with one {level}"),
        ({"item_tokens": {"pattern": "{level}{code}", "levels": ["a"]}}, "levels must have one entry per level"),
        ({"prompt": [1.0]}, r"prompt\[0\] must be an integer"),
        ({"event": {"begins": [1]}}, "event has the unknown field 'begins'; known are begin, end, actions"),
        ({"event": {"actions": {"view": 6}}}, "event.actions.view must be a list of integers, not 6"),
        ({"normalizer": "softmax"}, "normalizer must be one of 'level', 'vocabulary', 'legal', not 'softmax'"),
        ({"window": {"max_events": 5, "stride": 6}}, "stride must be from 1 to max_events"),
        ({"promt": []}, "xgr.json has the unknown field 'promt'"),
    ],
    ids=str,
)
def test_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Settings.from_json(FULL | change)


@given(
    json_values
    | mutations(FULL)
    | mutations(FULL | {"item_tokens": KINDS[2]})
    | mutations(FULL | {"item_tokens": KINDS[3]})
)
@example([])
@example(FULL | {"codes": [2**31 - 1] * 2, "item_tokens": KINDS[3]})
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        ItemTokens(Settings.from_json(value), 101, lambda: VOCABULARY)
    except CheckpointError:
        return
    assert isinstance(value, dict)
