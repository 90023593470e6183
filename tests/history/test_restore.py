"""Restoring a partition by hand-made changelogs; the random ones are in tests/property."""

from __future__ import annotations

import pytest

from xgr_stream.config import HistoryConfig
from xgr_stream.errors import HistoryError
from xgr_stream.history import Delta, HistoryStore, Segment, Stale, user_hash


def segment(number: int) -> Segment:
    return Segment(10 * number + 2, [f"i{3 * number + j}" for j in range(3)], None)


def delta(number: int) -> Delta:
    return Delta(100 + number, f"i{number}", None)


def empty(keep: int = 6) -> HistoryStore:
    return HistoryStore(HistoryConfig(keep_events=keep, segment_events=3))


def items(store: HistoryStore) -> list[str]:
    view = store.view("u")
    assert view is not None
    return [store.item_names[i] for i in view.items.tolist()]


def test_segments_then_deltas() -> None:
    store = empty()
    store.restore_segment(0, "u", 0, segment(0))
    store.restore_delta(0, "u", 3, delta(3))
    assert store.finish_restore(0) == Stale()
    assert items(store) == ["i0", "i1", "i2", "i3"]
    assert store.last_offset(0) == 103


def test_deltas_at_or_below_a_sealed_number_are_ignored_and_named_stale() -> None:
    store = empty()
    store.restore_segment(0, "u", 0, segment(0))
    store.restore_delta(0, "u", 1, Delta(999, "not this", None))
    assert store.finish_restore(0) == Stale(deltas={("u", 1)})
    assert items(store) == ["i0", "i1", "i2"]


def test_a_trimmed_segment_that_came_back_is_ignored_and_named_stale() -> None:
    store = empty()
    for number in (1, 2, 0):
        store.restore_segment(0, "u", number, segment(number))
    assert store.finish_restore(0) == Stale(segments={("u", 0)})
    assert items(store) == [f"i{n}" for n in range(3, 9)]


def test_what_has_its_tombstone_already_is_not_named_stale_again() -> None:
    """Of a user whose later segments do not go on from what was read of them."""
    store = empty()
    store.restore_segment(0, "u", 0, segment(0))
    store.restore_delta(0, "u", 3, delta(3))
    store.restore_delta(0, "u", 3, None)
    for number in (2, 3):
        store.restore_segment(0, "u", number, segment(number))
    store.restore_segment(0, "u", 0, None)
    assert store.finish_restore(0) == Stale()
    assert items(store) == [f"i{n}" for n in range(6, 12)]


def test_nor_is_what_a_segment_or_a_trim_makes_superfluous() -> None:
    store = empty(keep=3)
    store.restore_segment(0, "u", 0, segment(0))
    store.restore_segment(0, "u", 0, None)
    store.restore_segment(0, "u", 1, segment(1))
    assert store.finish_restore(0) == Stale()
    store = empty()
    for number in range(2):
        store.restore_delta(0, "u", number, delta(number))
    store.restore_delta(0, "u", 0, None)
    store.restore_segment(0, "u", 0, segment(0))
    assert store.finish_restore(0) == Stale(deltas={("u", 1)})


def test_order_does_not_matter() -> None:
    store = empty(keep=9)
    store.restore_delta(0, "u", 9, delta(9))
    for number in (2, 0, 1):
        store.restore_segment(0, "u", number, segment(number))
    store.finish_restore(0)
    assert items(store) == [f"i{n}" for n in range(10)]
    store.check_integrity()


@pytest.mark.parametrize(
    ("segments", "deltas", "missing"),
    [
        ((0, 2), (), "3 to 5"),
        ((0, 1), (8,), "6 to 7"),
        ((), (2,), "0 to 1"),
        ((0,), (4, 6, 7), "3 to 3, 5 to 5"),
        ((1,), (), "0 to 2"),
    ],
)
def test_a_gap_is_an_error_that_names_user_and_numbers(
    segments: tuple[int, ...], deltas: tuple[int, ...], missing: str
) -> None:
    store = empty(keep=20)
    for number in segments:
        store.restore_segment(0, "u", number, segment(number))
    for number in deltas:
        store.restore_delta(0, "u", number, delta(number))
    with pytest.raises(HistoryError, match=f"partition 0 lacks events .user {user_hash('u')}: {missing}"):
        store.finish_restore(0)
    assert store.num_users == 0


def test_keeping_fewer_events_than_before_names_the_rest_stale() -> None:
    store = empty(keep=3)
    for number in range(3):
        store.restore_segment(0, "u", number, segment(number))
    assert store.finish_restore(0) == Stale(segments={("u", 0), ("u", 1)})
    assert items(store) == ["i6", "i7", "i8"]


def test_keeping_more_events_than_before_is_refused_with_the_remedy() -> None:
    store = empty(keep=20)
    for number in (4, 5):
        store.restore_segment(0, "u", number, segment(number))
    with pytest.raises(HistoryError, match=r"keep_events was raised .* .set it back"):
        store.finish_restore(0)


def test_another_segment_size_is_refused() -> None:
    with pytest.raises(HistoryError, match="segment_events must be 2, with which the changelog was written, not 3"):
        empty().restore_segment(0, "u", 0, Segment(5, ["a", "b"], None))


def test_a_user_of_another_partition_is_refused() -> None:
    store = empty()
    store.restore_delta(0, "u", 0, delta(0))
    store.finish_restore(0)
    store.restore_delta(1, "u", 0, delta(0))
    with pytest.raises(HistoryError, match="users whose history is here already"):
        store.finish_restore(1)


def test_a_partition_without_changelog_is_empty() -> None:
    store = empty()
    assert store.finish_restore(5) == Stale()
    assert store.users(5) == []
    assert store.last_offset(5) == -1
