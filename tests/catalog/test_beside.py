"""Work in pieces: as if there were none."""

from __future__ import annotations

import pytest

from xgr_stream.catalog import beside


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 8])
def test_steps_hold_every_value_once_with_rests_between(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    rests: list[float] = []
    monkeypatch.setattr(beside, "STEP", 3)
    monkeypatch.setattr(beside, "sleep", rests.append)
    parts = list(beside.in_steps(iter(range(count))))
    assert [value for part in parts for value in part] == list(range(count))
    assert len(rests) == max(0, len(parts) - 1)
