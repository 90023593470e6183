"""History ↔ changelog records (docs/protocol.md has their bytes). Pure: no I/O and no state.

Every record is a pure function of the event log: which events a user had, in which order, at which offsets. A worker
that was frozen and writes late can only repeat what is already there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import msgpack

from xgr_stream.config import HistoryConfig
from xgr_stream.errors import HistoryError, InvalidEvent
from xgr_stream.history import FIRST_LIFE, Applied, Delta, HistoryStore, Segment, SourcePosition, Stale, user_digest
from xgr_stream.history.restore import PartitionRestore
from xgr_stream.stream.records import Unread
from xgr_stream.stream.source_header import source_from
from xgr_stream.types import UserEvent

MAJOR = 1
"""Version of the values. A worker stops at a newer one: to skip it would lose history."""


class Kind(IntEnum):
    """The first element of every key."""

    DELTA = 0
    SEGMENT = 1
    FENCE = 2
    FORGET = 3


# An enum's member takes as long to look up as all the rest of a key.
_DELTA, _SEGMENT = Kind.DELTA.value, Kind.SEGMENT.value


class Entry(NamedTuple):
    """One changelog record; `value` None is a tombstone."""

    key: bytes
    value: bytes | None


_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes."""

_pack = msgpack.Packer(use_bin_type=True).pack


def delta_key(user_id: str, number: int, life: int = FIRST_LIFE) -> bytes:
    key: bytes = _pack((_DELTA, user_id, number) if life == FIRST_LIFE else (_DELTA, user_id, number, life))
    return key


def segment_key(user_id: str, number: int, life: int = FIRST_LIFE) -> bytes:
    key: bytes = _pack((_SEGMENT, user_id, number) if life == FIRST_LIFE else (_SEGMENT, user_id, number, life))
    return key


def forget_key(digest: bytes, offset: int) -> bytes:
    """A record of its own for each time that a user was forgotten: a late writer's can't take a later one's place."""
    key: bytes = _pack((Kind.FORGET.value, digest, offset))
    return key


def forget_entry(user_id: str, offset: int, sources: Sequence[SourcePosition] = ()) -> Entry:
    """What says that a user was forgotten at `offset` of the events. It names them by a digest alone, and stays: what
    it makes void may still be written late. `sources`: the watermarks that they held."""
    return Entry(forget_key(user_digest(user_id), offset), _pack((MAJOR, sources) if sources else (MAJOR,)))


def entry_of(event: UserEvent, offset: int, applied: Applied, history: HistoryStore) -> Entry:
    """What to write for an event that was just applied: its delta, or the segment that it completed."""
    return Entry(*written(event.user_id, event.item_id, event.action, offset, applied, history))


def written(
    user_id: str, item_id: str, action: str | None, offset: int, applied: Applied, history: HistoryStore
) -> tuple[bytes, bytes]:
    """`entry_of`, from an event's fields, as key and value."""
    number, sealed, life, source = applied
    if sealed is None:
        # What `delta_key` does: to call it takes 15% more time for each event (1.6 -> 1.9 us).
        key = _pack((_DELTA, user_id, number) if life == FIRST_LIFE else (_DELTA, user_id, number, life))
        if source is None:
            return key, _pack((MAJOR, offset, item_id, action))
        return key, _pack((MAJOR, offset, item_id, action, (source,)))
    segment = history.segment(user_id, sealed)
    return segment_key(user_id, sealed, life), _pack((MAJOR, *(segment if segment.sources else segment[:3])))


def superseded_by(user_id: str, sealed: int, config: HistoryConfig, life: int = FIRST_LIFE) -> list[Entry]:
    """The tombstones to write once segment `sealed` is acknowledged: for its deltas, and for the segment that is no
    longer kept because of it. Not before: if the log ended between the two, they would leave a gap."""
    size = config.segment_events
    first = sealed * size
    entries = [Entry(delta_key(user_id, number, life), None) for number in range(first, first + size - 1)]
    kept_from = config.first_kept(first + size)
    if kept_from > config.first_kept(first):
        entries.append(Entry(segment_key(user_id, kept_from // size - 1, life), None))
    return entries


def stale_entries(stale: Stale) -> list[Entry]:
    """The tombstones for what is superfluous: of a user just forgotten, or found so by a restore since a worker died
    before it wrote them, or wrote late."""
    deltas = [Entry(delta_key(*key), None) for key in sorted(stale.deltas)]
    segments = [Entry(segment_key(*key), None) for key in sorted(stale.segments)]
    return deltas + segments + [Entry(forget_key(*key), None) for key in sorted(stale.forgets)]


def fence(nonce: bytes) -> Entry:
    """A record that marks how far a reader must read: it writes one and reads until it comes.

    All fences share a key, so that compaction leaves one of them.
    """
    return Entry(_pack((Kind.FENCE.value,)), _pack((MAJOR, nonce)))


def anchor(name: bytes) -> Entry:
    """A record that proves, by standing where a snapshot says it does, that the snapshot is of this very topic. A fence
    with a name, so that each has a key of its own and compaction leaves it where it is."""
    return Entry(_pack((Kind.FENCE.value, name)), _pack((MAJOR, name)))


def concerns(key: bytes | None, user_id: str) -> bool:
    """Whether a record is of this user. Raises `HistoryError` for a key that is none of ours."""
    try:
        kind, *rest = _unpacked(key or b"")
    except (ValueError, TypeError) as error:
        raise HistoryError(f"a record of the changelog has a key that can't be read ({_shown(key)})") from error
    if kind == Kind.FORGET:
        return rest[:1] == [user_digest(user_id)]
    return kind in (Kind.DELTA, Kind.SEGMENT) and rest[:1] == [user_id]


class KeyValue(Protocol):
    """What there is to a changelog record."""

    @property
    def key(self) -> bytes | None: ...

    @property
    def value(self) -> bytes | None: ...


def restore_all(history: HistoryStore, partition: int, records: Iterable[KeyValue]) -> None:
    """Feed changelog records to the history, as `restore` does: what nearly all of them are in a third of the time."""
    restoring = history.restoring(partition)
    for record in records:
        try:
            if not _restore_plain(restoring, record.key, record.value):
                restore(history, partition, record.key, record.value)
        except (ValueError, TypeError, InvalidEvent):
            restore(history, partition, record.key, record.value)  # says what is wrong with it


def _restore_plain(restoring: PartitionRestore, key: bytes | None, value: bytes | None) -> bool:
    """An event, or a segment, of a user who was never forgotten; False, with nothing done, for anything else."""
    if key is None or value is None:
        return False
    fields, values = msgpack.unpackb(key), msgpack.unpackb(value)
    if type(fields) is not list or len(fields) != 3 or type(values) is not list or len(values) not in (4, 5):
        return False
    kind, user_id, number = fields
    if type(user_id) is not str or type(number) is not int or values[0] != MAJOR or type(values[1]) is not int:
        return False
    sources: Sequence[SourcePosition] = ()
    if len(values) == 5:
        sources = sources_of([values.pop()])
    _, offset, items, actions = values
    if kind == _DELTA:
        if type(items) is not str or (actions is not None and type(actions) is not str):
            return False
        restoring.delta(user_id, number, _new(Delta, (offset, items, actions, sources)))
        return True
    if kind != _SEGMENT or type(items) is not list or actions is not None:
        return False
    "".join(items)  # a TypeError unless all are strings
    restoring.segment(user_id, number, _new(Segment, (offset, items, None, sources)))
    return True


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
    if isinstance(value, Unread):
        raise ValueError(value.error)
    if key is None:
        raise ValueError("key must not be null")
    kind, *rest = _unpacked(key)
    if kind == Kind.FENCE:
        return
    if kind == Kind.DELTA:
        history.restore_delta(partition, *_numbered(rest), None if value is None else delta_of(value), _life(rest))
    elif kind == Kind.SEGMENT:
        history.restore_segment(partition, *_numbered(rest), None if value is None else segment_of(value), _life(rest))
    elif kind == Kind.FORGET:
        digest, offset = rest[:2]
        _check(digest, bytes, "digest")
        _check(offset, int, "offset")
        sources = () if value is None else sources_of(_fields(value)[:1])
        history.restoring(partition).forget(digest, offset, sources, deleted=value is None)
    else:
        raise ValueError(f"kind must be 0, 1, 2 or 3, not {kind!r}")


def _numbered(rest: list[Any]) -> tuple[str, int]:
    user_id, number = rest[:2]
    _check(user_id, str, "user")
    _check(number, int, "number")
    return user_id, number


def _life(rest: list[Any]) -> int:
    if len(rest) == 2:
        return FIRST_LIFE
    _check(rest[2], int, "life")
    life: int = rest[2]
    return life


def _fields(value: bytes) -> list[Any]:
    major, *fields = _unpacked(value)
    if major != MAJOR:
        raise ValueError(f"major version must be {MAJOR}, not {major!r}: a newer release wrote it, run that one")
    return fields


def delta_of(value: bytes) -> Delta:
    """What a delta's value holds. Raises `ValueError` or `TypeError`."""
    fields = _fields(value)
    offset, item_id, action = fields[:3]
    _check(offset, int, "offset")
    _check(item_id, str, "item")
    if action is not None:
        _check(action, str, "action")
    return Delta(offset, item_id, action, sources_of(fields[3:4]))


def segment_of(value: bytes) -> Segment:
    """What a segment's value holds. Raises `ValueError` or `TypeError`."""
    fields = _fields(value)
    last_offset, items, actions = fields[:3]
    _check(last_offset, int, "last_offset")
    _check(items, list, "items")
    if not set(map(type, items)) <= {str}:
        raise TypeError("items must be strings")
    if actions is not None and (len(actions) != len(items) or not set(map(type, actions)) <= {str, type(None)}):
        raise ValueError("actions must be null or hold a string or null for each item")
    return Segment(last_offset, items, actions, sources_of(fields[3:4]))


def sources_of(trailing: Sequence[Any]) -> Sequence[SourcePosition]:
    """What the element behind those that each value has holds, if there is one. Raises `ValueError` or `TypeError`."""
    return () if not trailing or trailing[0] is None else tuple(map(source_from, trailing[0]))


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
