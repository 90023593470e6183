"""Records of a changelog as columns: what a restore has read of users of whom it holds nothing else yet.

To go through 6 segments and 8 deltas of a user one by one takes a hundred microseconds. As rows they are put together
when all have come, a chunk of users at a time, into the arrays that a snapshot is read into too; that is, of users
whose records are what a worker leaves behind: the segments that are kept, in turn, and the deltas that go on from them.
Users with any other records (late, twice, tombstones, gaps) are given back, to be gone through one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xgr_stream.config import HistoryConfig
from xgr_stream.history.packed import PackedUsers
from xgr_stream.history.records import FIRST_LIFE
from xgr_stream.history.sources import SourcePosition

CHUNK_USERS = 512
"""Users put together at a time, in one or two milliseconds."""
MAX_USERS = CHUNK_USERS << 15
MAX_BYTES = 1 << 29
MIN_GROWTH = 1 << 10

Ints = NDArray[np.int32]
Index = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Events(NamedTuple):
    """What some records of one kind hold."""

    offsets: Index
    """Of each one's last event."""
    items: Ints
    """Interned, [records, events of each]."""
    actions: NDArray[np.int16] | None
    """As `items`, -1 for none; None: no event has one."""
    sources: Mapping[int, Sequence[SourcePosition]] = {}
    """Of those records that hold any, by their place among these."""


class Records(NamedTuple):
    """Some records of one kind, all of their users' first lives. Arrays [records]."""

    users: Index
    """By their numbers in `Rows`."""
    numbers: Ints
    places: Index
    """Where each stood among those that were read together."""
    events: Events | None
    """Of those that hold any; None: all are tombstones."""
    held: Flags | None
    """Which those are; None: all."""


class Row(NamedTuple):
    """One record. Of a tombstone, `items` is None."""

    place: int
    is_segment: bool
    number: int
    offset: int
    items: list[int] | None
    actions: list[int] | None


class Table:
    """Columns that grow."""

    def __init__(self, width: int, *, of_segments: bool) -> None:
        self.width = width
        self.of_segments = of_segments
        self.count = 0
        self.users = np.empty(0, dtype=np.int32)
        self.numbers = np.empty(0, dtype=np.int32)
        self.offsets = np.empty(0, dtype=np.int64)
        self.places = np.empty(0, dtype=np.int32)
        self.items = np.empty((0, width), dtype=np.int32)
        """-1: a tombstone."""
        self.actions: NDArray[np.int16] | None = None

    @property
    def num_bytes(self) -> int:
        return self.count * (20 + self.width * (4 if self.actions is None else 6))

    def append(self, records: Records, first_place: int) -> None:
        start, end = self.count, self.count + len(records.users)
        if end > len(self.users):
            self._grow(max(end, start + max(start // 32, MIN_GROWTH)))
        self.users[start:end] = records.users
        self.numbers[start:end] = records.numbers
        self.places[start:end] = records.places + first_place
        self.count = end
        self.offsets[start:end], self.items[start:end] = -1, -1
        events = records.events
        if events is not None:
            cells = slice(start, end) if records.held is None else start + np.flatnonzero(records.held)
            self.offsets[cells] = events.offsets
            self.items[cells] = events.items
            if events.actions is not None and self.actions is None:
                self.actions = np.full(self.items.shape, -1, dtype=np.int16)
            if self.actions is not None:
                self.actions[cells] = -1 if events.actions is None else events.actions

    def by_chunk(self, num_chunks: int) -> list[Index]:
        """The rows of each chunk of users, in their order."""
        chunks = (self.users[: self.count] // CHUNK_USERS).astype(np.uint16)  # sixteen bits are sorted by counting
        order = np.argsort(chunks, kind="stable")
        bounds = np.searchsorted(chunks[order], np.arange(num_chunks + 1))
        return [order[start:end] for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]

    def rows(self, which: Index) -> list[Row]:
        columns = (column[which].tolist() for column in (self.places, self.numbers, self.offsets, self.items))
        actions = [None] * len(which) if self.actions is None else self.actions[which].tolist()
        return [
            Row(place, self.of_segments, number, offset, None if items[0] < 0 else items, of_items)
            for place, number, offset, items, of_items in zip(*columns, actions, strict=True)
        ]

    def _grow(self, rows: int) -> None:
        # In place: what is large is moved page by page, and is never there twice.
        for column in (self.users, self.numbers, self.offsets, self.places):
            column.resize(rows, refcheck=False)
        self.items.resize((rows, self.width), refcheck=False)
        if self.actions is not None:
            self.actions.resize((rows, self.width), refcheck=False)


class Rows:
    """What was read of a partition and belongs to no history yet."""

    def __init__(self, partition: int, config: HistoryConfig) -> None:
        self.segments = Table(config.segment_events, of_segments=True)
        self.deltas = Table(1, of_segments=False)
        self.index: dict[str, int] = {}
        """User → their number here."""
        self._partition = partition
        self._config = config
        self._ids: list[str] = []
        self._read = 0

    def add(self, segments: Records, deltas: Records, *, read: int) -> None:
        """Add some of the next `read` records that were read."""
        self.segments.append(segments, self._read)
        self.deltas.append(deltas, self._read)
        self._read += read

    @property
    def full(self) -> bool:
        return self.segments.num_bytes + self.deltas.num_bytes > MAX_BYTES or len(self._ids) > MAX_USERS

    def number(self, user_id: str) -> int:
        """The user's number, a new one if they have none."""
        number = self.index.get(user_id)
        if number is None:
            number = self.index[user_id] = len(self._ids)
            self._ids.append(user_id)
        return number

    def take(self, user_id: str) -> list[Row]:
        """The rows of one user, in the order in which they were read; they are no longer here. Looks at all rows."""
        number = self.index.pop(user_id, None)
        found: list[Row] = []
        if number is None:
            return found
        for table in (self.segments, self.deltas):
            of_user = np.flatnonzero(table.users[: table.count] == number)
            found += table.rows(of_user)
            table.users[of_user] = -1  # of the last chunk of all, which no user is in
        return sorted(found)

    def chunks(self) -> Iterator[tuple[PackedUsers | None, dict[str, list[Row]]]]:
        """All users, a chunk at a time: those who could be put together, and of each of the others the rows in the
        order in which they were read."""
        self._put_latest_first()
        count = -(-len(self._ids) // CHUNK_USERS)
        for chunk, rows in enumerate(zip(self.segments.by_chunk(count), self.deltas.by_chunk(count), strict=True)):
            first_user = chunk * CHUNK_USERS
            ids = self._ids[first_user : first_user + CHUNK_USERS]
            segments, deltas = (
                _OfUsers.of(table, of_chunk, first_user, len(ids))
                for table, of_chunk in zip((self.segments, self.deltas), rows, strict=True)
            )
            whole, first, ends = self._whole(segments, deltas)
            others = {
                ids[i]: sorted(segments.rows_of(i) + deltas.rows_of(i))
                for i in np.flatnonzero(~whole & (segments.counts + deltas.counts > 0)).tolist()
            }
            yield self._put_together(ids, segments, deltas, whole, first, ends), others

    def _put_latest_first(self) -> None:
        """Number the users anew: those who are wanted first, to be warmed, share chunks. Else all would be unpacked."""
        latest = np.full(len(self._ids), -1, dtype=np.int64)
        for table in (self.segments, self.deltas):
            here = table.users[: table.count] >= 0
            np.maximum.at(latest, table.users[: table.count][here], table.offsets[: table.count][here])
        order = np.argsort(-latest, kind="stable")
        numbers = np.empty(len(order) + 1, dtype=np.int32)
        numbers[order] = np.arange(len(order))
        numbers[-1] = -1  # of what was taken out
        for table in (self.segments, self.deltas):
            table.users[: table.count] = numbers[table.users[: table.count]]
        self._ids = [self._ids[i] for i in order.tolist()]

    def _whole(self, segments: _OfUsers, deltas: _OfUsers) -> tuple[Flags, Index, Index]:
        """Which users' records are consecutive, begin with the first event kept, and are nothing else; and of which
        numbers their events are, from the first up to the end."""
        size = self._config.segment_events
        first, sealed = segments.first * size, (segments.last + 1) * size
        ends = sealed + deltas.counts
        whole = segments.consecutive & deltas.consecutive & (ends > first)
        whole &= (deltas.counts == 0) | (deltas.first == sealed)
        kept_segments = -(-self._config.keep_events // size)
        whole &= first == np.maximum(0, ends // size - kept_segments) * size  # HistoryConfig.first_kept
        return whole, first, ends

    def _put_together(
        self, ids: list[str], segments: _OfUsers, deltas: _OfUsers, whole: Flags, first: Index, ends: Index
    ) -> PackedUsers | None:
        users = np.flatnonzero(whole)
        if not len(users):
            return None
        kept = np.where(whole, ends - first, 0)
        origin = np.cumsum(kept) - kept - first
        """Where the user's event of number 0 would be."""
        # Memory of its own, which goes when the chunk is unpacked: freed blocks among what stays would stay, too.
        items = np.frombuffer(mmap(-1, 4 * int(kept.sum())), dtype=np.int32)
        actions = np.full(len(items), -1, dtype=np.int16)
        for of in (segments, deltas):
            table = of.table
            belongs = np.flatnonzero(whole[of.users])
            rows = of.rows[belongs]
            at = origin[of.users[belongs]] + table.numbers[rows].astype(np.int64) * table.width
            cells = at[:, None] + np.arange(table.width)
            items[cells] = table.items[rows]
            if table.actions is not None:
                actions[cells] = table.actions[rows]
        last_offsets = np.where(deltas.counts > 0, deltas.last_offsets, segments.last_offsets)
        return PackedUsers(
            self._partition,
            [ids[i] for i in users.tolist()],
            kept[users].astype(np.uint32),
            first[users],
            last_offsets[users],
            np.full(len(users), FIRST_LIFE, dtype=np.int64),
            items,
            actions if bool((actions >= 0).any()) else None,
            None,
        )


@dataclass(slots=True)
class _OfUsers:
    """The rows of one table that belong to a chunk of users; arrays [users] but for the first two."""

    table: Table
    rows: Index
    """By user, and in the order in which they were read."""
    users: Index
    """Of each row."""
    counts: Index
    first: Index
    """Number of the user's first record, 0 if there is none."""
    last: Index
    """Number of the last one, -1 if there is none."""
    last_offsets: Index
    consecutive: Flags
    """Whether each number goes on from the one before, and no record is a tombstone."""

    @classmethod
    def of(cls, table: Table, rows: Index, first_user: int, num_users: int) -> _OfUsers:
        users = (table.users[rows] - first_user).astype(np.int64)
        order = np.argsort(users, kind="stable")
        rows, users = rows[order], users[order]
        numbers = table.numbers[rows].astype(np.int64)
        counts = np.bincount(users, minlength=num_users)
        ends = np.cumsum(counts)
        has = np.flatnonzero(counts)
        first, last, last_offsets = (np.full(num_users, value, dtype=np.int64) for value in (0, -1, -1))
        first[has] = numbers[(ends - counts)[has]]
        last[has] = numbers[ends[has] - 1]
        last_offsets[has] = table.offsets[rows[ends[has] - 1]]
        consecutive = np.ones(num_users, dtype=np.bool_)
        consecutive[users[1:][(users[1:] == users[:-1]) & (numbers[1:] != numbers[:-1] + 1)]] = False
        consecutive[users[table.items[rows, 0] < 0]] = False
        return cls(table, rows, users, counts, first, last, last_offsets, consecutive)

    def rows_of(self, user: int) -> list[Row]:
        return self.table.rows(self.rows[self.users == user])
