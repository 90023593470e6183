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
from xgr_stream.history import HistoryStore
from xgr_stream.history.restore import PartitionRestore
from xgr_stream.history.rows import Events, Records
from xgr_stream.history.tokens import PADDING, TokenNumbers
from xgr_stream.stream import changelog
from xgr_stream.stream.changelog import MAJOR, KeyValue, Kind

_SEGMENT = Kind.SEGMENT.value
_KINDS = frozenset((Kind.DELTA.value, _SEGMENT))
_VALUE = 0x94
"""First byte of an array of four."""
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

    def of(self, which: Flags) -> _Keys:
        return _Keys(self.places[which], self.users[which], self.numbers[which])


class BatchReader:
    """Feeds a store the records of its changelogs. Remembers names that it has met, until `rest`."""

    def __init__(self, history: HistoryStore) -> None:
        self._history = history
        self.rest()

    def rest(self) -> None:
        """Nothing is to be fed for now: free the memory."""
        self._items = TokenNumbers(self._add_item)
        self._actions = TokenNumbers(self._add_action)

    def feed(self, partition: int, records: Iterable[KeyValue]) -> None:
        """Feed records of the partition, in their order. Raises `HistoryError` for one that is not one of ours."""
        records = list(records)
        try:
            keys, values = [record.key for record in records], [record.value for record in records]
            singly = [records[i] for i in self._feed_rows(self._history.restoring(partition), keys, values)]
        except (ValueError, TypeError, OverflowError, InvalidEvent):
            singly = records  # one can't be read: gone through one by one, it is named
        changelog.restore_all(self._history, partition, singly)

    def _feed_rows(
        self, restoring: PartitionRestore, keys: Sequence[bytes | None], values: Sequence[bytes | None]
    ) -> list[int]:
        """Add what can be rows. Returns the places of all others. If it raises, nothing was added."""
        if restoring.full:
            for _ in restoring.settle():
                """Whoever wants it in steps has done it before."""
        fields = list(map(msgpack.unpackb, keys))
        others: list[int] = []
        born_again: set[str] = set()
        """Users of whom records of a later life are among these, which are no rows: then none of theirs are."""
        if set(map(len, fields)) != {3} or not {key[0] for key in fields} <= _KINDS:
            others = [i for i, key in enumerate(fields) if len(key) != 3 or key[0] not in _KINDS]
            born_again = {fields[i][1] for i in others if len(fields[i]) == 4 and type(fields[i][1]) is str}
            fields = [key for key in fields if len(key) == 3 and key[0] in _KINDS]
        if not fields:
            return others
        kinds, user_ids, numbers = zip(*fields, strict=True)
        if set(map(type, user_ids)) != {str} or set(map(type, numbers)) != {int}:
            raise TypeError("users must be strings, numbers integers")
        if max(numbers) > np.iinfo(np.int32).max:
            raise OverflowError("numbers must fit an int32")
        users = restoring.row_users(user_ids, but=born_again)
        places = np.delete(np.arange(len(keys)), others)
        columns = _Keys(places, np.array(users), np.array(numbers, dtype=np.int32))
        is_row, is_segment = columns.users >= 0, np.array(kinds) == _SEGMENT
        segments = self._records(columns.of(is_row & is_segment), values, self._segments)
        deltas = self._records(columns.of(is_row & ~is_segment), values, self._deltas)
        restoring.add(segments, deltas, read=len(keys))
        return sorted([*others, *places[~is_row].tolist()])

    @staticmethod
    def _records(keys: _Keys, values: Sequence[bytes | None], read: Callable[[Sequence[bytes]], Events]) -> Records:
        """`values`: of all that were read together; `read`: what reads those of the kind."""
        of_records = [values[i] for i in keys.places.tolist()]
        present = [value for value in of_records if value is not None]
        held = None if len(present) == len(of_records) else np.array([value is not None for value in of_records])
        return Records(keys.users, keys.numbers, keys.places, read(present) if present else None, held)

    def _add_item(self, token: bytes) -> int:
        return self._history.item_names.add(msgpack.unpackb(token))

    def _add_action(self, token: bytes) -> int:
        name = msgpack.unpackb(token)
        return -1 if name is None else self._history.add_action(name)

    # Deltas

    def _deltas(self, values: Sequence[bytes]) -> Events:
        """Raises what msgpack raises, and `ValueError`, `TypeError` or `InvalidEvent`."""
        offsets, names, actions = self._delta_fields(values)
        items = np.array(self._history.item_names.add_all(names), dtype=np.int32)[:, None]
        if set(actions) == {None}:
            return Events(np.array(offsets, dtype=np.int64), items, None)
        numbers = [-1 if name is None else self._history.add_action(name) for name in actions]
        return Events(np.array(offsets, dtype=np.int64), items, np.array(numbers, dtype=np.int16)[:, None])

    @staticmethod
    def _delta_fields(values: Sequence[bytes]) -> tuple[Sequence[int], Sequence[str], Sequence[str | None]]:
        fields = list(map(msgpack.unpackb, values))
        if set(map(len, fields)) == {4}:
            majors, offsets, items, actions = zip(*fields, strict=True)
            types = [set(map(type, column)) for column in (offsets, items, actions)]
            if set(majors) == {MAJOR} and types[:2] == [{int}, {str}] and types[2] <= {str, type(None)}:
                return offsets, items, actions
        deltas = list(map(changelog.delta_of, values))  # a newer release's, or not ours
        return [d.offset for d in deltas], [d.item_id for d in deltas], [d.action for d in deltas]

    # Segments

    def _segments(self, values: Sequence[bytes]) -> Events:
        """As `_deltas`."""
        size = self._history.config.segment_events
        lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        data, ends = b"".join([*values, PADDING]), np.cumsum(lengths)
        octets = np.frombuffer(data, dtype=np.uint8)
        at = ends - lengths
        read = (octets[at] == _VALUE) & (octets[at + 1] == MAJOR)
        width = _INTEGERS.take(octets[at + 2])
        read &= width >= 0
        offsets = _integers(data, octets, at + 2, width)
        strings = _Strings(octets, at + 3 + width, read, size, _STRINGS)
        at, read = strings.end, strings.read
        acting = np.flatnonzero(read & (octets.take(at, mode="clip") != _NULL))
        at = at + 1
        names = None
        if len(acting):
            names = _Strings(octets, at[acting] - 1, read[acting], size, _STRINGS_OR_NULL)
            at[acting], read[acting] = names.end, names.read
        read &= at == ends
        items = np.empty((len(values), size), dtype=np.int32)
        items[read] = strings.numbers(data, self._items, read)
        actions = None
        if names is not None:
            actions = np.full((len(values), size), -1, dtype=np.int16)
            actions[acting[read[acting]]] = names.numbers(data, self._actions, read[acting])
        for i in np.flatnonzero(~read).tolist():  # long strings, a newer release's, or not ours
            segment = changelog.segment_of(values[i])
            if len(segment.items) != size:
                raise ValueError(f"a segment must hold {size} items, not {len(segment.items)}")
            offsets[i], items[i] = segment.last_offset, self._history.item_names.add_all(segment.items)
            if segment.actions is not None:
                if actions is None:
                    actions = np.full((len(values), size), -1, dtype=np.int16)
                actions[i] = [-1 if name is None else self._history.add_action(name) for name in segment.actions]
        return Events(offsets, items, actions)


def _integers(data: bytes, octets: Octets, at: Index, width: Index) -> Index:
    """The integers that begin at `at` and take so many bytes more; of no meaning where that is negative, or beyond an
    int64, or the data's end."""
    everywhere: NDArray[np.uint64] = np.ndarray((len(data) - 7,), ">u8", data, strides=(1,))
    behind = everywhere.take(at + 1, mode="clip") >> (8 * (8 - np.clip(width, 1, 8))).astype(np.uint64)
    numbers: Index = np.where(width > 0, behind.astype(np.int64), octets[at])
    return numbers


class _Strings:
    """Arrays of `count` strings, of which the octets at `at` are to be one each. Read wherever `read` is true then."""

    def __init__(self, octets: Octets, at: Index, read: Flags, count: int, steps: Index) -> None:
        """`steps`: first byte → bytes that a string takes."""
        header = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
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
