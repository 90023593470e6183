"""Changelog records that are not ours, or of a newer release, stop the partition."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xgr_stream.config import MAX_SEGMENT_EVENTS, HistoryConfig
from xgr_stream.errors import HistoryError, MalformedMessage
from xgr_stream.history import HistoryStore
from xgr_stream.stream import changelog
from xgr_stream.stream.changelog_batch import BatchReader
from xgr_stream.stream.records import Unread
from xgr_stream.types import MAX_ID_CHARS, UserEvent

DELTA = changelog.delta_key("u", 0)
SEGMENT = changelog.segment_key("u", 0)


def pack(*fields: object) -> bytes:
    data: bytes = msgpack.packb(fields)
    return data


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (DELTA, pack(2, 0, "a", None), "major version must be 1, not 2: a newer release wrote it"),
        (SEGMENT, pack(2, 0, ["a"], None), "major version must be 1, not 2"),
        (None, pack(1, 0, "a", None), "key must not be null"),
        (b"user-7", pack(1, 0, "a", None), "can't be read"),
        (pack(9, "u", 0), pack(1), "kind must be 0, 1, 2 or 3, not 9"),
        (pack(0, 7, 0), pack(1, 0, "a", None), "user must be str"),
        (pack(0, "u", "0"), pack(1, 0, "a", None), "number must be int"),
        (pack(0, "u"), pack(1, 0, "a", None), "can't be read"),
        (DELTA, b"", "can't be read"),
        (DELTA, pack(1, 0), "can't be read"),
        (DELTA, pack(1, 0, 7, None), "item must be str"),
        (DELTA, pack(1, 0, "a", 3), "action must be str"),
        (SEGMENT, pack(1, 0, ["a", 3], None), "items must be strings"),
        (SEGMENT, pack(1, 0, ["a", "b"], ["x"]), "actions must be null or hold"),
        (SEGMENT, pack(1, 0, ["a"], None), "segment_events must be 1"),
    ],
)
def test_a_record_that_is_not_ours_is_an_error(key: bytes | None, value: bytes | None, text: str) -> None:
    store = HistoryStore(HistoryConfig(segment_events=2))
    with pytest.raises(HistoryError, match=text):
        changelog.restore(store, 0, key, value)


def test_a_record_that_was_not_read_is_an_error_that_says_why() -> None:
    unread = Unread(MalformedMessage("records 3 to 3, of a batch of 90 bytes, can't be read: it is cut off"))
    with pytest.raises(HistoryError, match="records 3 to 3, of a batch of 90 bytes, can't be read: it is cut off"):
        changelog.restore(HistoryStore(HistoryConfig()), 0, None, unread)


def test_elements_that_a_later_minor_release_adds_are_ignored() -> None:
    store = HistoryStore(HistoryConfig(segment_events=2))
    changelog.restore(store, 0, DELTA, pack(1, 5, "a", None, None, "new"))
    store.finish_restore(0)
    assert store.last_offset(0) == 5


def test_a_fence_is_known_by_its_nonce() -> None:
    assert changelog.fence(b"mine") == changelog.fence(b"mine")
    assert changelog.fence(b"mine") != changelog.fence(b"other")


numbers_or_names = st.integers(-2, 3) | st.sampled_from(["u", b"u", None]) | st.integers(-(2**63), 2**64 - 1)
keys = st.binary(max_size=40) | (
    st.lists(numbers_or_names, max_size=5)
    | st.dictionaries(st.integers(0, 9) | st.text(max_size=2), st.none(), max_size=4)
).map(lambda key: msgpack.packb(key))


@given(st.lists(st.tuples(keys, st.none() | st.binary(max_size=40)), min_size=1, max_size=3))
@example([(msgpack.packb({"a": 1, "b": 2, "c": 3}), None)])
def test_whatever_the_bytes_nothing_but_a_history_error_is_raised(records: list[tuple[bytes, bytes | None]]) -> None:
    for key, value in records:
        with suppress(HistoryError):
            changelog.restore(HistoryStore(), 0, key, value)
    with suppress(HistoryError):
        BatchReader(HistoryStore()).feed(0, [changelog.Entry(key, value) for key, value in records])


def test_the_longest_segment_is_a_record_that_brokers_take() -> None:
    store, longest = HistoryStore(HistoryConfig(segment_events=MAX_SEGMENT_EVENTS)), "\U0001f600" * MAX_ID_CHARS
    for offset in range(MAX_SEGMENT_EVENTS):
        applied = store.apply(UserEvent(longest, longest, longest), offset=offset)
        assert applied is not None
    key, value = changelog.written(longest, longest, longest, offset, applied, store)
    assert 1_000_000 < len(key) + len(value or b"") < 1_048_588 - 1_000
