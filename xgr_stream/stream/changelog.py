"""History ↔ changelog records (docs/protocol.md has their bytes). Pure: no I/O and no state.

Every record is a pure function of the event log: which events a user had, in which order, at which offsets. A worker
that was frozen and writes late can only repeat what is already there.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

from xgr_stream.config import HistoryConfig
from xgr_stream.errors import HistoryError, InvalidEvent
from xgr_stream.history import Applied, Delta, HistoryStore, Segment, Stale
from xgr_stream.types import UserEvent

MAJOR = 1
"""Version of the values. A worker stops at a newer one: to skip it would lose history."""


class Kind(IntEnum):
    """The first element of every key."""

    DELTA = 0
    SEGMENT = 1
    FENCE = 2


_DELTA = Kind.DELTA.value  # an enum's member takes as long to look up as all the rest of a key


class Entry(NamedTuple):
    """One changelog record; `value` None is a tombstone."""

    key: bytes
    value: bytes | None


_pack = msgpack.Packer(use_bin_type=True).pack


def delta_key(user_id: str, number: int) -> bytes:
    key: bytes = _pack((_DELTA, user_id, number))
    return key


def segment_key(user_id: str, number: int) -> bytes:
    key: bytes = _pack((Kind.SEGMENT.value, user_id, number))
    return key


def entry_of(event: UserEvent, offset: int, applied: Applied, history: HistoryStore) -> Entry:
    """What to write for an event that was just applied: its delta, or the segment that it completed."""
    if applied.sealed is None:
        return Entry(delta_key(event.user_id, applied.number), _pack((MAJOR, offset, event.item_id, event.action)))
    segment = history.segment(event.user_id, applied.sealed)
    return Entry(segment_key(event.user_id, applied.sealed), _pack((MAJOR, *segment)))


def superseded_by(user_id: str, sealed: int, config: HistoryConfig) -> list[Entry]:
    """The tombstones to write once segment `sealed` is acknowledged: for its deltas, and for the segment that is no
    longer kept because of it. Not before: if the log ended between the two, they would leave a gap."""
    size = config.segment_events
    first = sealed * size
    entries = [Entry(delta_key(user_id, number), None) for number in range(first, first + size - 1)]
    kept_from = config.first_kept(first + size)
    if kept_from > config.first_kept(first):
        entries.append(Entry(segment_key(user_id, kept_from // size - 1), None))
    return entries


def stale_entries(stale: Stale) -> list[Entry]:
    """The tombstones for what a restore found superfluous: a worker died before it wrote them, or one wrote late."""
    deltas = [Entry(delta_key(*key), None) for key in sorted(stale.deltas)]
    return deltas + [Entry(segment_key(*key), None) for key in sorted(stale.segments)]


def fence(nonce: bytes) -> Entry:
    """A record that marks how far a reader must read: it writes one and reads until `is_fence` knows it again.

    All fences share a key, so that compaction leaves one of them.
    """
    return Entry(_pack((Kind.FENCE.value,)), _pack((MAJOR, nonce)))


def is_fence(key: bytes | None, value: bytes | None, nonce: bytes) -> bool:
    """Whether this record is the fence that was written with `nonce`."""
    return (key, value) == fence(nonce)


def restore(history: HistoryStore, partition: int, key: bytes | None, value: bytes | None) -> None:
    """Feed one changelog record to the history.

    Raises `HistoryError` for a record that is not one of ours: to pass over it could lose history.
    """
    try:
        _restore(history, partition, key, value)
    except (ValueError, TypeError, InvalidEvent) as error:
        raise HistoryError(
            f"a record of the changelog, partition {partition}, can't be read ({error}; key {_shown(key)}): is another "
            "application writing to this topic?"
        ) from error


def _restore(history: HistoryStore, partition: int, key: bytes | None, value: bytes | None) -> None:
    if key is None:
        raise ValueError("key must not be null")
    kind, *rest = _unpacked(key)
    if kind == Kind.FENCE:
        return
    user_id, number = rest
    _check(user_id, str, "user")
    _check(number, int, "number")
    fields = None if value is None else _fields(value)
    if kind == Kind.DELTA:
        history.restore_delta(partition, user_id, number, None if fields is None else _delta(fields))
    elif kind == Kind.SEGMENT:
        history.restore_segment(partition, user_id, number, None if fields is None else _segment(fields))
    else:
        raise ValueError(f"kind must be 0, 1 or 2, not {kind!r}")


def _fields(value: bytes) -> list[Any]:
    major, *fields = _unpacked(value)
    if major != MAJOR:
        raise ValueError(f"major version must be {MAJOR}, not {major!r}: a newer release wrote it, run that one")
    return fields


def _delta(fields: list[Any]) -> Delta:
    offset, item_id, action = fields[:3]
    _check(offset, int, "offset")
    _check(item_id, str, "item")
    if action is not None:
        _check(action, str, "action")
    return Delta(offset, item_id, action)


def _segment(fields: list[Any]) -> Segment:
    last_offset, items, actions = fields[:3]
    _check(last_offset, int, "last_offset")
    _check(items, list, "items")
    if not set(map(type, items)) <= {str}:
        raise TypeError("items must be strings")
    if actions is not None and (len(actions) != len(items) or not set(map(type, actions)) <= {str, type(None)}):
        raise ValueError("actions must be null or hold a string or null for each item")
    return Segment(last_offset, items, actions)


def _check(value: object, kind: type, name: str) -> None:
    if type(value) is not kind:
        raise TypeError(f"{name} must be {kind.__name__}, not {_shown(value)}")


def _unpacked(data: bytes) -> list[Any]:
    fields = msgpack.unpackb(data, raw=False, max_ext_len=0)
    if type(fields) is not list or not fields:
        raise ValueError(f"expected a msgpack array, not {_shown(data)}")
    return fields


def _shown(value: object) -> str:
    """Enough of a value to find it, without the user id that a key holds after its first bytes."""
    return f"{value[:2].hex()}… ({len(value)} bytes)" if isinstance(value, bytes) else type(value).__name__
