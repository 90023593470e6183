"""Watermarks of other topics' partitions, and who holds them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.errors import InvalidEvent
from xgr_stream.history import HistoryStore, sources
from xgr_stream.history.sources import SourcePosition, Watermarks

holders = st.sampled_from(["ann", "bob", b"digest"])
positions = st.builds(SourcePosition, st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 4))


@given(st.lists(st.tuples(st.lists(positions, max_size=3), holders) | holders, max_size=30))
def test_whose_event_is_the_highest_holds_the_watermark(
    steps: list[tuple[list[SourcePosition], str | bytes]],
) -> None:
    watermarks, highest = Watermarks(), dict[tuple[str, int], tuple[int, str | bytes]]()
    for step in steps:
        if isinstance(step, str):
            watermarks.forget(step, b"digest")
            highest = {place: (top, b"digest" if who == step else who) for place, (top, who) in highest.items()}
        elif isinstance(step, tuple):
            watermarks.note(*step)
            for topic, partition, offset in step[0]:
                top, _ = highest.get((topic, partition), (-1, ""))
                if offset > top or (offset == top and isinstance(step[1], bytes)):
                    highest[topic, partition] = offset, step[1]
        held = sorted(highest.items())
        assert [(*watermark.source, watermark.holder) for watermark in watermarks] == [
            (*place, top, who) for place, (top, who) in held
        ]
        for holder in ("ann", "bob", b"digest"):
            assert watermarks.held_by(holder) == tuple((*place, top) for place, (top, who) in held if who == holder)


def test_so_many_sources_count_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_WATERMARKS", 2)
    store = HistoryStore()
    for offset, name in enumerate("ab"):
        store.add_copy("ann", "item-1", None, 0, offset, SourcePosition(name, 0, 5))
    with pytest.raises(InvalidEvent, match=r"one of the .* partitions of other topics .*, not of 'c', 7"):
        store.add_copy("ann", "item-1", None, 0, 2, SourcePosition("c", 7, 5))
    assert store.add_copy("ann", "item-1", None, 0, 3, SourcePosition("a", 0, 6)) is not None
    assert [watermark.source for watermark in store.watermarks(0)] == [("a", 0, 6), ("b", 0, 5)]
    view = store.view("ann")
    assert view is not None
    assert view.event_count == 3
