"""How far a partition is done, as it is committed and read back by the next owner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.stream.offsets import OffsetTracker
from xgr_stream.stream.progress import MAX_AHEAD, Progress

BROKERS_LIMIT = 4096


@given(offset=st.integers(0, 1 << 50), ahead=st.sets(st.integers(1, MAX_AHEAD), max_size=50))
def test_what_was_committed_is_read_back(offset: int, ahead: set[int]) -> None:
    progress = Progress(offset, frozenset(offset + number for number in ahead))
    assert Progress.read(offset, progress.metadata()) == progress


def test_it_fits_into_what_a_broker_keeps() -> None:
    assert len(Progress(7, frozenset({7 + MAX_AHEAD})).metadata()) <= BROKERS_LIMIT


def test_metadata_of_others_says_nothing_and_broken_metadata_is_refused() -> None:
    assert Progress.read(5, "set by hand") == Progress(5)
    with pytest.raises(ValueError, match="can't be read"):
        Progress.read(5, "xgr1:???")


@given(
    taken=st.lists(st.integers(0, 40), unique=True, min_size=1).map(sorted),
    data=st.data(),
)
def test_the_next_owner_takes_what_is_not_done_and_nothing_else(taken: list[int], data: st.DataObject) -> None:
    """Through two owners, each of whom gets a part of it done."""
    done: set[int] = set()
    progress = Progress(0)
    for _ in range(2):
        tracker = OffsetTracker()
        tracker.begin(progress)
        got = [offset for offset in taken if tracker.take(offset)]
        assert got == [offset for offset in taken if offset not in done]
        acknowledged = data.draw(st.sets(st.sampled_from(got))) if got else set()
        written = data.draw(st.sets(st.sampled_from(got))) if got else set()
        for offset in acknowledged:
            tracker.acknowledge(offset)
        found = tracker.progress(written)
        assert found is not None
        done |= acknowledged | written
        assert {offset for offset in taken if offset < found.offset} | found.done == done
        progress = Progress.read(found.offset, found.metadata())


def test_nothing_is_known_before_anything_was_taken() -> None:
    assert OffsetTracker().progress() is None
    tracker = OffsetTracker()
    tracker.begin(Progress(3, frozenset({5})))
    assert tracker.progress() == Progress(3, frozenset({5}))
