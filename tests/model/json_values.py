"""Strategies for JSON that nobody expects."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

_scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)

json_values: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutations(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """`valid` with some of its values, at any depth, replaced, removed or joined by unknown ones."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        containers = list(_containers(document))
        container = draw(st.sampled_from(containers))
        if isinstance(container, list):
            container.insert(draw(st.integers(0, len(container))), draw(json_values))
            continue
        key = draw(st.sampled_from(sorted(container)) | st.text(max_size=8)) if container else draw(st.text())
        if draw(st.booleans()):
            container.pop(key, None)
        else:
            container[key] = draw(json_values)
    return document


def _containers(value: Any) -> Any:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)
