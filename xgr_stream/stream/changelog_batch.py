"""Changelog records → histories, hundreds at a time (docs/protocol.md has their bytes; `changelog` reads single ones).

The strings of a segment are not decoded: where each begins and ends, in all of a batch's values, is found by a few
array operations for each of a segment's items, and the numbers of all of them by some more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from xgr_stream.errors import InvalidEvent
from xgr_stream.history import HistoryStore, SourcePosition
from xgr_stream.history.restore import PartitionRestore
from xgr_stream.history.rows import Events, Records
from xgr_stream.history.tokens import PADDING, TokenNumbers
from xgr_stream.stream import changelog
from xgr_stream.stream.changelog import MAJOR, KeyValue, Kind

_SEGMENT = Kind.SEGMENT.value
_KINDS = frozenset((Kind.DELTA.value, _SEGMENT))
_KEY, _VALUE, _COPY_VALUE = 0x93, 0x94, 0x95
"""First byte of an array of three, of four, and of five: with source positions."""
_NULL = 0xC0
_STR8 = 0xD9
_STRINGS = np.zeros(256, dtype=np.int64)
"""First byte of a string of up to 31 bytes → bytes that it takes; 0: of anything else."""
_STRINGS[0xA0:0xC0] = np.arange(1, 33)
_STRINGS_OR_NULL = _STRINGS.copy()
_STRINGS_OR_NULL[_NULL] = 1
_INTEGERS = np.full(256, -1, dtype=np.int64)
"""First byte of an integer that is not negative → bytes behind it that it takes; -1: of anything else."""
_INTEGERS[:0x80] = 0
_INTEGERS[0xCC:0xD0] = 1, 2, 4, 8

Octets = NDArray[np.uint8]
Index = NDArray[np.int64]
Flags = NDArray[np.bool_]


class _Keys(NamedTuple):
    """What the keys of some records say; arrays [records], as in `Records`."""

    places: Index
    users: Index
    numbers: NDArray[np.int32]
    are_segments: Flags

    def of(self, which: Flags) -> _Keys:
        return _Keys(self.places[which], self.users[which], self.numbers[which], self.are_segments[which])


class _Single(NamedTuple):
    """What a record holds that was read by itself."""

    offset: int
    items: Sequence[str]
    actions: Sequence[str | None]
    sources: Sequence[SourcePosition]


class _Users(NamedTuple):
    """The numbers of a partition's users, by the bytes of their ids."""

    restoring: PartitionRestore
    changes: int
    numbers: TokenNumbers


class BatchReader:
    """Feeds a store the records of its changelogs. Remembers names that it has met, until `rest`."""

    def __init__(self, history: HistoryStore) -> None:
        self._history = history
        self.rest()

    def rest(self) -> None:
        """Nothing is to be fed for now: free the memory."""
        self._users: dict[int, _Users] = {}
        self._items = TokenNumbers(self._add_items)
        self._actions = TokenNumbers(self._add_actions)

    def forget_users(self, partition: int) -> None:
        """They are about to be settled, which takes memory: free what their numbers take."""
        self._users.pop(partition, None)

    def feed(self, partition: int, records: Iterable[KeyValue]) -> None:
        """Feed records of the partition, in their order. Raises `HistoryError` for one that is not one of ours."""
        records = list(records)
        try:
            keys, values = [record.key for record in records], [record.value for record in records]
            singly = [records[i] for i in self._feed_rows(self._history.restoring(partition), keys, values)]
        except (ValueError, TypeError, LookupError, OverflowError, InvalidEvent):
            singly = records  # one can't be read: gone through one by one, it is named
        changelog.restore_all(self._history, partition, singly)

    def _feed_rows(
        self, restoring: PartitionRestore, keys: Sequence[bytes | None], values: Sequence[bytes | None]
    ) -> list[int]:
        """Add what can be rows. Returns the places of all others. If it raises, nothing was added."""
        if restoring.full:
            for _ in restoring.settle():
                """Whoever wants it in steps has done it before."""
        columns = self._columns(restoring, keys)
        if columns is not None:
            others: list[int] = []
        else:
            columns, others = self._columns_singly(restoring, keys)
        is_row, is_segment = columns.users >= 0, columns.are_segments
        segments = self._records(columns.of(is_row & is_segment), values, self._segments)
        deltas = self._records(columns.of(is_row & ~is_segment), values, self._deltas)
        restoring.add(segments, deltas, read=len(keys))
        for records in (segments, deltas):
            _note_sources(restoring, keys, records)
        return sorted([*others, *columns.places[~is_row].tolist()])

    def _columns(self, restoring: PartitionRestore, keys: Sequence[bytes | None]) -> _Keys | None:
        """What the keys say, if all are of deltas and segments of first lives."""
        if None in keys or not keys:
            return None
        data, octets, at, ends = _joined(keys)  # type: ignore[arg-type]  # none is None
        kinds = octets[at + 1]
        read = (octets[at] == _KEY) & (kinds <= _SEGMENT)
        strings = _Strings(octets, at + 2, read, 1, _STRINGS, b"")
        width = _INTEGERS.take(octets.take(strings.end, mode="clip"))
        numbers = _integers(data, octets, np.minimum(strings.end, len(data) - 1), width)
        read = strings.read & (width >= 0) & (strings.end + 1 + width == ends)
        if not (read & (numbers >= 0) & (numbers <= np.iinfo(np.int32).max)).all():
            return None
        users = strings.numbers(data, self._numbering(restoring), read)[:, 0].astype(np.int64)
        return _Keys(np.arange(len(keys)), users, numbers.astype(np.int32), kinds == _SEGMENT)

    def _numbering(self, restoring: PartitionRestore) -> TokenNumbers:
        """Of the partition's users; anew once some of them are known otherwise."""
        users = self._users.get(restoring.partition)
        if users is None or users.restoring is not restoring or users.changes != restoring.row_changes:

            def numbers(tokens: list[bytes]) -> list[int]:
                return restoring.row_users(list(map(msgpack.unpackb, tokens)))

            users = _Users(restoring, restoring.row_changes, TokenNumbers(numbers))
            self._users[restoring.partition] = users
        return users.numbers

    def _columns_singly(self, restoring: PartitionRestore, keys: Sequence[bytes | None]) -> tuple[_Keys, list[int]]:
        """The same of those keys that are; and the places of all others."""
        fields = list(map(msgpack.unpackb, keys))
        others: list[int] = []
        born_again: set[str] = set()
        """Users of whom records of a later life are among these, which are no rows: then none of theirs are."""
        if set(map(len, fields)) != {3} or not {key[0] for key in fields} <= _KINDS:
            others = [i for i, key in enumerate(fields) if len(key) != 3 or key[0] not in _KINDS]
            born_again = {fields[i][1] for i in others if len(fields[i]) == 4 and type(fields[i][1]) is str}
            fields = [key for key in fields if len(key) == 3 and key[0] in _KINDS]
        kinds, user_ids, numbers = zip(*fields, strict=True) if fields else ((), (), ())
        if not (set(map(type, user_ids)) <= {str} and set(map(type, numbers)) <= {int}):
            raise TypeError("users must be strings, numbers integers")
        if max(numbers, default=0) > np.iinfo(np.int32).max:
            raise OverflowError("numbers must fit an int32")
        users = restoring.row_users(user_ids, but=born_again)
        places = np.delete(np.arange(len(keys)), others)
        are_segments = np.array(kinds, dtype=np.int64) == _SEGMENT
        columns = _Keys(places, np.array(users, dtype=np.int64), np.array(numbers, dtype=np.int32), are_segments)
        return columns, others

    @staticmethod
    def _records(keys: _Keys, values: Sequence[bytes | None], read: Callable[[Sequence[bytes]], Events]) -> Records:
        """`values`: of all that were read together; `read`: what reads those of the kind."""
        of_records = [values[i] for i in keys.places.tolist()]
        present = [value for value in of_records if value is not None]
        held = None if len(present) == len(of_records) else np.array([value is not None for value in of_records])
        return Records(keys.users, keys.numbers, keys.places, read(present) if present else None, held)

    def _add_items(self, tokens: list[bytes]) -> list[int]:
        return self._history.item_names.add_all(list(map(msgpack.unpackb, tokens)))

    def _add_actions(self, tokens: list[bytes]) -> list[int]:
        names = map(msgpack.unpackb, tokens)
        return [-1 if name is None else self._history.add_action(name) for name in names]

    # Values

    def _deltas(self, values: Sequence[bytes]) -> Events:
        return self._events(values, 1, b"", self._delta)

    def _segments(self, values: Sequence[bytes]) -> Events:
        size = self._history.config.segment_events
        header = bytes([0x90 | size]) if size < 16 else b"\xdc" + size.to_bytes(2, "big")
        return self._events(values, size, header, self._segment)

    def _events(self, values: Sequence[bytes], size: int, header: bytes, singly: Callable[[bytes], _Single]) -> Events:
        """Of records that hold `size` items each, and actions, behind such a header. `singly`: what reads one that is
        anything else. Raises what msgpack raises, and `ValueError`, `TypeError`, `OverflowError` or `InvalidEvent`."""
        data, octets, at, ends = _joined(values)
        more = octets[at] == _COPY_VALUE
        read = ((octets[at] == _VALUE) | more) & (octets[at + 1] == MAJOR)
        width = _INTEGERS.take(octets[at + 2])
        offsets = _integers(data, octets, at + 2, width)
        read &= (width >= 0) & (offsets >= 0)
        strings = _Strings(octets, at + 3 + width, read, size, _STRINGS, header)
        at, read = strings.end, strings.read
        acting = np.flatnonzero(read & (octets.take(at, mode="clip") != _NULL))
        at = at + 1
        names = None
        if len(acting):
            names = _Strings(octets, at[acting] - 1, read[acting], size, _STRINGS_OR_NULL, header)
            at[acting], read[acting] = names.end, names.read
        read &= np.where(more, at < ends, at == ends)
        copies = np.flatnonzero(read & more)
        sources = {
            i: changelog.sources_of([msgpack.unpackb(data[start:end], max_ext_len=0)])
            for i, start, end in zip(copies.tolist(), at[copies].tolist(), ends[copies].tolist(), strict=True)
        }
        items = np.empty((len(values), size), dtype=np.int32)
        items[read] = strings.numbers(data, self._items, read)
        actions = None
        if names is not None:
            actions = np.full((len(values), size), -1, dtype=np.int16)
            actions[acting[read[acting]]] = names.numbers(data, self._actions, read[acting])
        for i in np.flatnonzero(~read).tolist():  # long strings, a newer release's, or not ours
            offsets[i], of_one, their_actions, sources[i] = singly(values[i])
            if len(of_one) != size:
                raise ValueError(f"a segment must hold {size} items, not {len(of_one)}")
            items[i] = self._history.item_names.add_all(of_one)
            if any(name is not None for name in their_actions):
                if actions is None:
                    actions = np.full((len(values), size), -1, dtype=np.int16)
                actions[i] = [-1 if name is None else self._history.add_action(name) for name in their_actions]
        return Events(offsets, items, actions, sources)

    @staticmethod
    def _delta(value: bytes) -> _Single:
        delta = changelog.delta_of(value)
        return _Single(delta.offset, [delta.item_id], [delta.action], delta.sources)

    @staticmethod
    def _segment(value: bytes) -> _Single:
        segment = changelog.segment_of(value)
        return _Single(segment.last_offset, segment.items, segment.actions or [], segment.sources)


def _note_sources(restoring: PartitionRestore, keys: Sequence[bytes | None], records: Records) -> None:
    if records.events is None or not records.events.sources:
        return
    places = (records.places if records.held is None else records.places[records.held]).tolist()
    for at, sources in records.events.sources.items():
        restoring.watermarks.note(sources, msgpack.unpackb(keys[places[at]])[1])


def _joined(values: Sequence[bytes]) -> tuple[bytes, Octets, Index, Index]:
    """All of them one behind the other, and padding; where each begins, and ends."""
    lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    data, ends = b"".join([*values, PADDING]), np.cumsum(lengths)
    return data, np.frombuffer(data, dtype=np.uint8), ends - lengths, ends


def _integers(data: bytes, octets: Octets, at: Index, width: Index) -> Index:
    """The integers that begin at `at` and take so many bytes more; of no meaning where that is negative, or beyond an
    int64, or the data's end."""
    everywhere: NDArray[np.uint64] = np.ndarray((len(data) - 7,), ">u8", data, strides=(1,))
    behind = everywhere[np.minimum(at + 1, len(everywhere) - 1)] >> (8 * (8 - np.clip(width, 1, 8))).astype(np.uint64)
    numbers: Index = np.where(width > 0, behind.astype(np.int64), octets[at])
    return numbers


class _Strings:
    """`count` strings behind a header, of which the octets at `at` are to be one each. Read wherever `read` is true
    then."""

    def __init__(self, octets: Octets, at: Index, read: Flags, count: int, steps: Index, header: bytes) -> None:
        """`steps`: first byte → bytes that a string takes."""
        self.read = read.copy()
        for octet in header:
            self.read &= octets.take(at, mode="clip") == octet
            at = at + 1
        self._starts = np.empty((count, len(at)), dtype=np.int64)
        self._lengths = np.empty((count, len(at)), dtype=np.int64)
        for i in range(count):
            first = octets.take(at, mode="clip")
            step = steps.take(first)
            if (longer := first == _STR8).any():
                step = np.where(longer, 2 + octets.take(at + 1, mode="clip"), step)
            self._starts[i], self._lengths[i] = at, step
            at = at + step
        self.read &= (self._lengths > 0).all(axis=0)
        self.end = at

    def numbers(self, data: bytes, numbering: TokenNumbers, which: Flags) -> NDArray[np.int32]:
        """[of those chosen, count]"""
        starts, lengths = (
            (self._starts, self._lengths) if which.all() else (self._starts[:, which], self._lengths[:, which])
        )
        return numbering.numbers(data, starts.reshape(-1), lengths.reshape(-1)).reshape(starts.shape).T
