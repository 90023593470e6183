"""docs/checkpoints.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from xgr_stream.model.settings import Settings
from xgr_stream.model.tokens import ItemTokens

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def test_the_example_is_encoded_as_shown() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    tokens = ItemTokens(Settings.from_json(json.loads(example)), 200, dict)
    encoded = tokens.encode(np.array([[3, 0, 9], [3, 1, 2]]), ["view", "buy"])
    shown = re.search(r"^1 +\|.*?(?=→)", PAGE, re.MULTILINE)
    assert shown is not None
    assert [*tokens.prompt, *encoded, *tokens.tail] == [int(token) for token in re.findall(r"\d+", shown.group())]
