"""The offset that may be committed never passes an open record."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.stream.offsets import OffsetTracker


def test_nothing_is_committable_before_anything_is_acknowledged() -> None:
    tracker = OffsetTracker()
    assert tracker.take(5)
    assert tracker.committable is None
    tracker.acknowledge(5)
    assert tracker.committable == 6


def test_an_offset_is_taken_once() -> None:
    tracker = OffsetTracker()
    assert tracker.take(5)
    assert not tracker.take(5)
    assert not tracker.take(4)
    tracker.acknowledge(5)
    assert not tracker.take(5)
    tracker.acknowledge(5)
    assert (tracker.committable, tracker.pending) == (6, 0)


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(0, 2**32))
def test_committable_is_the_end_of_the_unbroken_run(offsets: set[int], seed: int) -> None:
    rng = random.Random(seed)
    tracker = OffsetTracker()
    for offset in sorted(offsets):
        tracker.take(offset)
    order = rng.sample(sorted(offsets), len(offsets))
    for i, offset in enumerate(order, start=1):
        tracker.acknowledge(offset)
        still_open = set(order[i:])
        run = [o for o in sorted(offsets) if all(o < other for other in still_open)]
        assert tracker.committable == (run[-1] + 1 if run else None)
        assert tracker.pending == len(offsets) - len(run)


@given(st.sets(st.integers(0, 60), min_size=1), st.lists(st.lists(st.integers(0, 60), max_size=8), max_size=8))
def test_offsets_acknowledged_together_count_as_one_by_one(offsets: set[int], slices: list[list[int]]) -> None:
    together, singly = OffsetTracker(), OffsetTracker()
    for offset in sorted(offsets):
        together.take(offset)
        singly.take(offset)
    for acknowledged in slices:
        together.acknowledge_all(acknowledged)
        for offset in acknowledged:
            singly.acknowledge(offset)
        assert (together.committable, together.pending) == (singly.committable, singly.pending)
        assert together.progress() == singly.progress()
