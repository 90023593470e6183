"""The events of one user in one buffer, and the views that share it."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xgr_stream.history.records import FIRST_LIFE

_ITEM_BYTES = 4
_ACTION_BYTES = 2
EVENT_BYTES = _ITEM_BYTES + _ACTION_BYTES
FIRST_CAPACITY = 8

_put_item = struct.Struct("=i").pack_into
_join = bytearray().join
_put_action = struct.Struct("=h").pack_into


class HistoryView:
    """A user's history as it was when the view was taken.

    Immutable and without a copy: it shares the user's buffer, whose written part never changes (new events go behind
    it, and a full buffer is left to its views). Safe to read on another thread while the store goes on.
    """

    __slots__ = ("_buffer", "_start", "event_count", "first_number", "last_offset", "life", "user_id")

    def __init__(self, user_id: str, user: UserHistory) -> None:
        self.user_id = user_id
        self.event_count = user.shift + user.end
        """Events of the user ever, those no longer kept included."""
        self.first_number = user.shift + user.start
        """Number of the first event kept."""
        self.last_offset = user.last_offset
        """Offset of the last event; -1: it came from no topic."""
        self.life = user.life
        """Offset of the record that last made the user forgotten; -1: none did. Events are numbered from there."""
        self._buffer = user.buffer
        self._start = user.start

    @property
    def items(self) -> NDArray[np.int32]:
        """Interned items [kept], read-only."""
        return self.items_from(self.first_number)

    def items_from(self, number: int) -> NDArray[np.int32]:
        """Interned items of the events from this number on, which is kept or still to come, read-only."""
        number = min(number, self.event_count)
        place = (self._start + number - self.first_number) * _ITEM_BYTES
        return np.frombuffer(memoryview(self._buffer).toreadonly(), np.int32, self.event_count - number, place)

    @property
    def actions(self) -> NDArray[np.int16]:
        """Interned actions [kept], -1 for none, read-only."""
        items_bytes = len(self._buffer) // EVENT_BYTES * _ITEM_BYTES
        return np.frombuffer(
            memoryview(self._buffer).toreadonly(), np.int16, len(self), items_bytes + self._start * _ACTION_BYTES
        )

    @property
    def data(self) -> tuple[memoryview, memoryview]:
        """The bytes of `items` and of `actions`."""
        buffer = memoryview(self._buffer).toreadonly()
        end, actions_at = self._start + len(self), len(self._buffer) // EVENT_BYTES * _ITEM_BYTES
        return (
            buffer[self._start * _ITEM_BYTES : end * _ITEM_BYTES],
            buffer[actions_at + self._start * _ACTION_BYTES : actions_at + end * _ACTION_BYTES],
        )

    def __len__(self) -> int:
        """Number of events kept."""
        return self.event_count - self.first_number

    def __repr__(self) -> str:
        return f"HistoryView(events {self.first_number} to {self.event_count}, last_offset={self.last_offset})"


class UserHistory:
    """One user's events: `buffer` holds `capacity` items (int32), then as many actions (int16).

    A bytearray instead of two numpy arrays saves 180 bytes of every user. Cells `start:end` are in use; the event in
    cell i has the number `shift + i`. A written cell is never written again, which is what views rely on.
    """

    __slots__ = ("buffer", "end", "last_offset", "life", "partition", "shift", "start")

    def __init__(
        self, partition: int, first_number: int = 0, life: int = FIRST_LIFE, buffer: bytearray | None = None
    ) -> None:
        """`buffer`: events already packed, which it is full of."""
        self.partition = partition
        self.life = life
        self.shift = first_number
        self.start = 0
        self.last_offset = -1
        if buffer is None:
            self.buffer = bytearray(FIRST_CAPACITY * EVENT_BYTES)
            self.end = 0
        else:
            self.buffer = buffer
            self.end = len(buffer) // EVENT_BYTES

    @property
    def event_count(self) -> int:
        return self.shift + self.end

    @property
    def first_number(self) -> int:
        return self.shift + self.start

    @property
    def capacity(self) -> int:
        return len(self.buffer) // EVENT_BYTES

    def append(self, item: int, action: int) -> int:
        """Add one event; by how many bytes the buffer grew for it."""
        grown = 0
        capacity = len(self.buffer) // EVENT_BYTES
        if self.end == capacity:
            before = len(self.buffer)
            self._grow()
            capacity = len(self.buffer) // EVENT_BYTES
            grown = len(self.buffer) - before
        buffer, end = self.buffer, self.end
        _put_item(buffer, end * _ITEM_BYTES, item)
        _put_action(buffer, capacity * _ITEM_BYTES + end * _ACTION_BYTES, action)
        self.end = end + 1
        return grown

    def extend(self, items: Sequence[int], actions: Sequence[int] | None) -> None:
        """Add several events; `actions` None: none has one. A buffer that has no room for them is filled exactly."""
        count = len(items)
        item_bytes = array("i", items).tobytes()
        action_bytes = b"\xff\xff" * count if actions is None else array("h", actions).tobytes()
        capacity = len(self.buffer) // EVENT_BYTES
        start, end = self.start, self.end
        if end + count <= capacity:
            self._write(end, item_bytes, action_bytes)
            self.end = end + count
            return
        old, actions_at = memoryview(self.buffer), capacity * _ITEM_BYTES
        self.buffer = _join(
            (
                old[start * _ITEM_BYTES : end * _ITEM_BYTES],
                item_bytes,
                old[actions_at + start * _ACTION_BYTES : actions_at + end * _ACTION_BYTES],
                action_bytes,
            )
        )
        self.shift += start
        self.start, self.end = 0, end - start + count

    def trim(self, first_number: int) -> None:
        """Forget the events before `first_number`. The memory goes when the buffer is next replaced."""
        self.start = max(self.start, first_number - self.shift)

    def view(self, user_id: str) -> HistoryView:
        return HistoryView(user_id, self)

    def _grow(self) -> None:
        """Move what is kept to a new buffer with room for an eighth more."""
        kept = self.end - self.start
        old, old_capacity = self.buffer, self.capacity
        self.buffer = bytearray((kept + max(8, kept // 8)) * EVENT_BYTES)
        actions_at = old_capacity * _ITEM_BYTES
        self._write(
            0,
            old[self.start * _ITEM_BYTES : self.end * _ITEM_BYTES],
            old[actions_at + self.start * _ACTION_BYTES : actions_at + self.end * _ACTION_BYTES],
        )
        self.shift += self.start
        self.start, self.end = 0, kept

    def _write(self, at: int, items: bytes | bytearray, actions: bytes | bytearray) -> None:
        item_at = at * _ITEM_BYTES
        action_at = self.capacity * _ITEM_BYTES + at * _ACTION_BYTES
        self.buffer[item_at : item_at + len(items)] = items
        self.buffer[action_at : action_at + len(actions)] = actions
