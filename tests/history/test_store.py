"""The history store: numbering, trimming, views, partitions."""

from __future__ import annotations

import numpy as np
import pytest

from xgr_stream.config import HistoryConfig
from xgr_stream.errors import HistoryError, InvalidEvent
from xgr_stream.history import Applied, HistoryStore, Segment
from xgr_stream.history import store as store_module
from xgr_stream.types import UserEvent


def filled(count: int, *, keep: int = 8, segment: int = 4) -> HistoryStore:
    store = HistoryStore(HistoryConfig(keep_events=keep, segment_events=segment))
    for i in range(count):
        store.apply(UserEvent("u", f"item-{i}", "view" if i % 2 else None), offset=10 * i)
    return store


def names(store: HistoryStore, user: str = "u") -> list[str]:
    view = store.view(user)
    assert view is not None
    return [store.item_names[i] for i in view.items.tolist()]


def test_events_are_numbered_and_segments_sealed() -> None:
    store = HistoryStore(HistoryConfig(keep_events=8, segment_events=2))
    applied = [store.apply(UserEvent("u", "a"), offset=i) for i in range(5)]
    assert applied == [Applied(0, None), Applied(1, 0), Applied(2, None), Applied(3, 1), Applied(4, None)]


def test_an_offset_already_included_changes_nothing() -> None:
    store = filled(3)
    assert store.apply(UserEvent("u", "other"), offset=20) is None
    assert store.apply(UserEvent("u", "other"), offset=7) is None
    assert names(store) == ["item-0", "item-1", "item-2"]
    assert store.item_names.get("other") is None


def test_events_without_an_offset_are_always_new() -> None:
    store = HistoryStore()
    for _ in range(3):
        store.apply(UserEvent("u", "a"))
    view = store.view("u")
    assert view is not None
    assert (view.event_count, view.last_offset) == (3, -1)


@pytest.mark.parametrize("count", [1, 7, 8, 11, 12, 15, 16, 100, 1001])
def test_whole_segments_are_trimmed_and_at_least_keep_events_kept(count: int) -> None:
    store = filled(count)
    view = store.view("u")
    assert view is not None
    assert view.first_number % 4 == 0
    assert min(count, 8) <= len(view) < 8 + 4
    assert names(store) == [f"item-{i}" for i in range(view.first_number, count)]
    assert store.num_events == len(view)
    store.check_integrity()


def test_actions_are_kept_beside_items() -> None:
    store = filled(4)
    view = store.view("u")
    assert view is not None
    assert view.actions.tolist() == [-1, 0, -1, 0]
    assert store.action_names[0] == "view"
    assert (view.items.dtype, view.actions.dtype) == (np.int32, np.int16)


def test_a_view_never_changes() -> None:
    store = filled(6)
    views = []
    for i in range(6, 200):
        view = store.view("u")
        assert view is not None
        views.append((view, view.event_count, view.items.copy(), view.actions.copy()))
        store.apply(UserEvent("u", f"item-{i}"), offset=10 * i)
    for view, event_count, items, actions in views:
        assert view.event_count == event_count
        np.testing.assert_array_equal(view.items, items)
        np.testing.assert_array_equal(view.actions, actions)


def test_the_items_of_the_latest_events() -> None:
    view = filled(17).view("u")
    assert view is not None
    for number in range(view.first_number, 20):
        expected = view.items[number - view.first_number :].tolist()
        assert view.items_from(number).tolist() == expected


def test_a_view_cannot_be_written_and_shares_the_buffer() -> None:
    view = filled(3).view("u")
    assert view is not None
    with pytest.raises(ValueError, match="read-only"):
        view.items[0] = 1
    assert np.shares_memory(view.items, view.items)


def test_the_segment_just_sealed_can_be_read_and_no_other() -> None:
    store = filled(8)
    assert store.segment("u", 1) == Segment(70, [f"item-{i}" for i in range(4, 8)], [None, "view", None, "view"])
    with pytest.raises(HistoryError, match="segment must be the one just completed, 1, not 0"):
        store.segment("u", 0)


def test_a_segment_without_actions_says_so() -> None:
    store = HistoryStore(HistoryConfig(keep_events=8, segment_events=2))
    for offset in range(2):
        store.apply(UserEvent("u", "a"), offset=offset)
    assert store.segment("u", 0) == Segment(1, ["a", "a"], None)


def test_partitions_are_dropped_one_by_one() -> None:
    store = HistoryStore()
    for i, user in enumerate(["a", "b", "c", "a"]):
        store.apply(UserEvent(user, "x"), partition=1 if user == "c" else 0, offset=i)
    assert store.users(0) == ["a", "b"]
    assert (store.last_offset(0), store.last_offset(1), store.last_offset(2)) == (3, 2, -1)
    assert sorted(store.drop(0)) == ["a", "b"]
    assert (store.num_users, store.num_events, store.last_offset(0)) == (1, 1, -1)
    assert store.partition("c") == 1
    assert store.partition("a") is None
    store.check_integrity()


def test_a_user_is_on_one_partition() -> None:
    store = filled(1)
    with pytest.raises(InvalidEvent, match=r"partition must be 0, which holds user .*, not 1"):
        store.apply(UserEvent("u", "a"), partition=1, offset=99)
    assert names(store) == ["item-0"]


def test_forgetting_a_user_frees_their_memory() -> None:
    store = filled(50)
    assert store.memory_bytes > 0
    assert store.forget("u")
    assert not store.forget("u")
    assert (store.memory_bytes, store.num_events, store.view("u")) == (0, 0, None)


def test_too_many_actions_are_refused_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_ACTIONS", 1)
    store = filled(2)
    with pytest.raises(InvalidEvent, match="action must be one of at most 1"):
        store.apply(UserEvent("new", "a", "buy"), offset=99)
    assert store.num_users == 1
    store.check_integrity()


def test_check_integrity_finds_a_wrong_count() -> None:
    store = filled(3)
    store._num_events += 1
    with pytest.raises(HistoryError, match="num_events must be 3, not 4"):
        store.check_integrity()
