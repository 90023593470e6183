"""A partition's histories out of its changelog, whatever compaction and late writers have done to its order.

A changelog as it was written holds, for each user, deltas up to a segment's end, then the segment, then tombstones for
its deltas. Compaction keeps the last record of each key, so a record that a late writer repeated moves to the end.
Every record is a pure function of the event log, therefore order can't matter: what continues a history goes straight
into its buffer (nearly everything does), what does not is laid aside until the end. Of a user who was forgotten, the
records of the latest life count, and none of a life before the last thing that made them forgotten.

Many records at a time come as rows (`add`), which wait until they are settled: a user has rows or is known otherwise,
never both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import repeat

import numpy as np

from xgr_stream.config import HistoryConfig
from xgr_stream.errors import HistoryError
from xgr_stream.history.gaps import ranges_of, refuse_gaps
from xgr_stream.history.interner import Interner
from xgr_stream.history.packed import PackedUsers
from xgr_stream.history.records import FIRST_LIFE, Delta, Numbered, Segment, Stale, numbered, user_digest
from xgr_stream.history.rows import Records, Row, Rows
from xgr_stream.history.sources import SourcePosition, Watermark, Watermarks
from xgr_stream.history.user import UserHistory

REPLAYED_AT_ONCE = 500
"""Records gone through one by one in a step of `settle`, some 5 ms."""


class _Aside:
    """Records of one user that did not continue the history when they came."""

    __slots__ = ("deltas", "life", "segments")

    def __init__(self, life: int) -> None:
        self.life = life
        self.deltas: dict[int, Delta] = {}
        self.segments: dict[int, Segment] = {}


class PartitionRestore:
    """Rebuilds one partition's histories. Feed `delta`, `segment`, `forget` and `add`, then `finish`, then take
    `users`, `forgotten` and `watermarks`. All may be given something to begin with, as a snapshot held it."""

    def __init__(
        self,
        partition: int,
        config: HistoryConfig,
        item_names: Interner,
        action_names: Interner,
        add_action: Callable[[str], int],
    ) -> None:
        self.users: dict[str, UserHistory | PackedUsers] = {}
        self.forgotten: dict[bytes, int] = {}
        """Digest of a user → offset of the record that last made them forgotten."""
        self.watermarks = Watermarks()
        """The latest of any record that was fed, whether or not it counts otherwise: it did when it was written."""
        self.row_changes = 0
        """How often a user whom `row_users` had numbered got another number, or none."""
        self.partition = partition
        self._config = config
        self._item_names = item_names
        self._action_names = action_names
        self._add_action = add_action
        self._rows = Rows(partition, config)
        self._aside: dict[str, _Aside] = {}
        self._stale = Stale()
        self._packed: list[PackedUsers] = []
        self._deleted: set[Numbered] = set()
        """Deltas with a tombstone though no segment of theirs has been read: of users being forgotten."""
        self._deleted_segments: set[Numbered] = set()

    def begin_with(
        self, packed: Iterable[PackedUsers], forgotten: dict[bytes, int], watermarks: Iterable[Watermark]
    ) -> None:
        """Take what a snapshot held, before anything else."""
        for users in packed:
            self._packed.append(users)
            self.users.update(dict.fromkeys(users.ids, users))
        self.forgotten = forgotten
        self.watermarks = Watermarks(watermarks)

    def row_users(self, user_ids: Sequence[str], *, but: Set[str] = frozenset()) -> list[int]:
        """For each user the number by which `add` takes rows of them; -1: `delta` and `segment` take their records.
        Those of `but` have none."""
        for user_id in but:
            self._take_out(user_id)
        numbers = list(map(self._rows.index.get, user_ids, repeat(-1)))
        if -1 in numbers:
            for i, number in enumerate(numbers):
                if number < 0 and user_ids[i] not in but and not self._knows(user_ids[i]):
                    numbers[i] = self._rows.number(user_ids[i])
        return numbers

    def add(self, segments: Records, deltas: Records, *, read: int) -> None:
        """Add records of users whom `row_users` numbers, out of the next `read` ones."""
        self._rows.add(segments, deltas, read=read)

    @property
    def full(self) -> bool:
        """Whether rows should be settled before more are added, for their memory."""
        return self._rows.full

    def settle(self) -> Iterator[None]:
        """Make histories of all rows, in steps of some milliseconds. Nothing may be fed in between."""
        rows, self._rows = self._rows, Rows(self.partition, self._config)
        self.row_changes += 1
        for packed, others in rows.chunks():
            if packed is not None:
                self._packed.append(packed)
                self.users.update(dict.fromkeys(packed.ids, packed))
            replayed = 0
            for user_id, of_user in others.items():
                for row in of_user:
                    self._replay(user_id, row)
                    replayed += 1
                    if replayed % REPLAYED_AT_ONCE == 0:
                        yield
            yield

    def delta(self, user_id: str, number: int, delta: Delta | None, life: int = FIRST_LIFE) -> None:
        if self._rows.index:
            self._take_out(user_id)
        if delta is None:
            self._delete_delta(user_id, number, life)
            return
        if delta.sources:
            self.watermarks.note(delta.sources, user_id)
        held = self.users.get(user_id)
        user = self._user(user_id) if isinstance(held, PackedUsers) else held
        if user is None or user.life != life:
            if not self._lives(user_id, life):
                self._stale.deltas.add(numbered(user_id, number, life))
                return
            user = self._user(user_id)
        if self._deleted:  # written again, late
            self._deleted.discard(numbered(user_id, number, life))
        if user is None and number == 0:
            self._append(self._start(user_id, 0, life), delta)
        elif user is None or number > user.event_count:
            self._lay_aside(user_id, life).deltas[number] = delta
        elif number == user.event_count:
            self._append(user, delta)
        elif number < self._sealed(user):
            self._stale.deltas.add(numbered(user_id, number, life))

    def segment(self, user_id: str, number: int, segment: Segment | None, life: int = FIRST_LIFE) -> None:
        if self._rows.index:
            self._take_out(user_id)
        size = self._config.segment_events
        first = number * size
        if segment is None:
            self._delete_segment(user_id, number, life)
            return
        if segment.sources:
            self.watermarks.note(segment.sources, user_id)
        held = self.users.get(user_id)
        user = self._user(user_id) if isinstance(held, PackedUsers) else held
        if user is None or user.life != life:
            if not self._lives(user_id, life):
                self._stale.segments.add(numbered(user_id, number, life))
                return
            user = self._user(user_id)
        if self._deleted_segments:
            self._deleted_segments.discard(numbered(user_id, number, life))
        if len(segment.items) != size:
            raise HistoryError(
                f"segment_events must be {len(segment.items)}, with which the changelog was written, not {size}: "
                "set it back, or start a new changelog topic"
            )
        if user is None:
            user = self._start(user_id, first, life)
        if first > user.event_count:
            self._lay_aside(user_id, life).segments[number] = segment
        elif first + size > user.event_count:
            self._continue(user_id, user, first, segment)
        elif first < user.first_number:
            self._below(user_id, user, number, segment)

    def forget(
        self, digest: bytes, offset: int, sources: Iterable[SourcePosition] = (), *, deleted: bool = False
    ) -> None:
        """Feed the record that a user was forgotten at `offset`, who held these watermarks; deleted: its tombstone."""
        if deleted:
            self._stale.forgets.discard((digest, offset))
            return
        self.watermarks.note(sources, digest)
        last = self.forgotten.get(digest, FIRST_LIFE)
        if last != offset and last != FIRST_LIFE:
            self._stale.forgets.add((digest, min(last, offset)))
        self.forgotten[digest] = max(last, offset)

    def recent(self, limit: int) -> list[str]:
        """The users most recently active so far, the latest first."""
        self._settle_all()
        ids, offsets = [], []
        for user_id, user in self.users.items():
            if isinstance(user, UserHistory):
                ids.append(user_id)
                offsets.append(user.last_offset)
        arrays = [np.asarray(offsets, dtype=np.int64)]
        for packed in self.still_packed():
            ids += packed.ids
            arrays.append(packed.last_offsets)
        joined = np.concatenate(arrays)
        limit = min(limit, len(joined))
        latest = np.argpartition(-joined, limit - 1)[:limit] if limit else np.empty(0, dtype=np.int64)
        return [ids[i] for i in latest[np.argsort(-joined[latest])].tolist()]

    def still_packed(self) -> list[PackedUsers]:
        """What of a snapshot, or of settled rows, nothing has touched."""
        return [packed for packed in self._packed if self.users.get(packed.ids[0]) is packed]

    def finish(self) -> Stale:
        """Settle, merge what was laid aside, check that nothing is missing, and return the keys to tombstone."""
        self._settle_all()
        if self.forgotten:
            for user_id in {**self.users, **self._aside}:
                at = self.forgotten.get(user_digest(user_id))
                if at is not None and at > self._life(user_id):
                    self._expire(user_id)
        for user_id, aside in self._aside.items():
            self._merge(user_id, aside)
        self._aside.clear()
        gaps = [
            (user_id, [(self._config.first_kept(user.event_count), user.first_number - 1)])
            for user_id, user in self.users.items()
            if isinstance(user, UserHistory)  # those still packed are whole
            and (user.shift or user.start)
            and user.first_number > self._config.first_kept(user.event_count)
        ]
        refuse_gaps(self.partition, gaps)
        return self._stale

    # Rows

    def _settle_all(self) -> None:
        for _ in self.settle():
            """Whoever wants it in steps has done it before."""

    def _take_out(self, user_id: str) -> None:
        """Go through the user's rows now, because a record comes that is to be gone through by itself."""
        if user_id not in self._rows.index:
            return
        self.row_changes += 1
        for row in self._rows.take(user_id):
            self._replay(user_id, row)

    def _knows(self, user_id: str) -> bool:
        return user_id in self.users or user_id in self._aside

    def _replay(self, user_id: str, row: Row) -> None:
        if row.is_segment:
            segment = None if row.items is None else Segment(row.offset, *self._names(row.items, row.actions))
            self.segment(user_id, row.number, segment)
        elif row.items is None:
            self.delta(user_id, row.number, None)
        else:
            (item,), actions = self._names(row.items, row.actions)
            self.delta(user_id, row.number, Delta(row.offset, item, None if actions is None else actions[0]))

    def _names(self, items: list[int], actions: list[int] | None) -> tuple[list[str], list[str | None] | None]:
        names = [self._item_names[item] for item in items]
        if actions is None or max(actions) < 0:
            return names, None
        return names, [None if action < 0 else self._action_names[action] for action in actions]

    # Lives

    def _life(self, user_id: str) -> int:
        """The latest life of the user that any record has told of; -2: none."""
        known = self._user(user_id) or self._aside.get(user_id)
        return FIRST_LIFE - 1 if known is None else known.life

    def _lives(self, user_id: str, life: int) -> bool:
        """Whether a record of this life counts; what an earlier one left goes if it does."""
        known = self._life(user_id)
        if FIRST_LIFE <= known < life:
            self._expire(user_id)
        return known <= life

    def _expire(self, user_id: str) -> None:
        """Drop all that was read of the user's life; every key of it is superfluous."""
        user, aside = self._user(user_id), self._aside.pop(user_id, None)
        self.users.pop(user_id, None)
        deltas: set[Numbered] = set()
        segments: set[Numbered] = set()
        if user is not None:
            size = self._config.segment_events
            sealed = self._sealed(user)
            deltas |= {numbered(user_id, n, user.life) for n in range(max(sealed, user.first_number), user.event_count)}
            segments |= {numbered(user_id, n, user.life) for n in range(user.first_number // size, sealed // size)}
        if aside is not None:
            deltas |= {numbered(user_id, n, aside.life) for n in aside.deltas}
            segments |= {numbered(user_id, n, aside.life) for n in aside.segments}
        self._supersede(deltas, segments)

    def _supersede(self, deltas: Iterable[Numbered] = (), segments: Iterable[Numbered] = ()) -> None:
        """These keys are superfluous; those that have their tombstones already need no other."""
        self._stale.deltas |= set(deltas) - self._deleted
        self._stale.segments |= set(segments) - self._deleted_segments

    def _delete_delta(self, user_id: str, number: int, life: int) -> None:
        key = numbered(user_id, number, life)
        self._stale.deltas.discard(key)
        aside = self._aside.get(user_id)
        if aside is not None and aside.life == life:
            aside.deltas.pop(number, None)
        user = self._user(user_id)
        if user is not None and user.life == life and number >= self._sealed(user):
            self._deleted.add(key)

    def _delete_segment(self, user_id: str, number: int, life: int) -> None:
        key = numbered(user_id, number, life)
        self._stale.segments.discard(key)
        aside = self._aside.get(user_id)
        if aside is not None and aside.life == life:
            aside.segments.pop(number, None)
        user = self._user(user_id)
        if user is not None and user.life == life and number * self._config.segment_events >= user.first_number:
            self._deleted_segments.add(key)

    # What continues a history

    def _user(self, user_id: str) -> UserHistory | None:
        user = self.users.get(user_id)
        if isinstance(user, PackedUsers):
            self.users.update(user.unpacked())
            return self._user(user_id)
        return user

    def _start(self, user_id: str, first_number: int, life: int) -> UserHistory:
        user = self.users[user_id] = UserHistory(self.partition, first_number, life)
        return user

    def _append(self, user: UserHistory, delta: Delta) -> None:
        user.append(self._item_names.add(delta.item_id), -1 if delta.action is None else self._add_action(delta.action))
        user.last_offset = delta.offset

    def _continue(self, user_id: str, user: UserHistory, first: int, segment: Segment) -> None:
        """Add the part of `segment` that the history lacks; its deltas are superfluous from now on."""
        known = user.event_count - first
        if known > 0:
            self._supersede(deltas=[numbered(user_id, n, user.life) for n in range(first, user.event_count)])
        items, actions = self._interned(segment)
        if known:
            items, actions = items[known:], None if actions is None else actions[known:]
        user.extend(items, actions)
        user.last_offset = segment.last_offset
        if user.event_count <= self._config.keep_events:
            return
        kept_from = self._config.first_kept(user.event_count)
        if kept_from > user.first_number:
            size = self._config.segment_events
            trimmed = range(user.first_number // size, kept_from // size)
            self._supersede(segments=[numbered(user_id, n, user.life) for n in trimmed])
            user.trim(kept_from)

    def _interned(self, segment: Segment) -> tuple[list[int], list[int] | None]:
        items = self._item_names.add_all(segment.items)
        if segment.actions is None:
            return items, None
        return items, [-1 if action is None else self._add_action(action) for action in segment.actions]

    # What does not

    def _lay_aside(self, user_id: str, life: int) -> _Aside:
        return self._aside.setdefault(user_id, _Aside(life))

    def _below(self, user_id: str, user: UserHistory, number: int, segment: Segment) -> None:
        """A segment before the first one kept so far: trimmed long ago, or only out of its place."""
        if number * self._config.segment_events < self._config.first_kept(user.event_count):
            self._stale.segments.add(numbered(user_id, number, user.life))
        else:
            self._lay_aside(user_id, user.life).segments[number] = segment

    def _sealed(self, user: UserHistory) -> int:
        size = self._config.segment_events
        return user.event_count // size * size

    def _merge(self, user_id: str, aside: _Aside) -> None:
        """Put the user's history together anew from its buffer and what was laid aside."""
        size = self._config.segment_events
        life = aside.life
        user = self._user(user_id) or UserHistory(self.partition, 0, life)
        events = {user.first_number + i: event for i, event in enumerate(self._events(user_id, user))}
        last_offset, last_number = user.last_offset, user.event_count - 1
        for number, delta in aside.deltas.items():
            action = -1 if delta.action is None else self._add_action(delta.action)
            events.setdefault(number, (self._item_names.add(delta.item_id), action))
            if number > last_number:
                last_offset, last_number = delta.offset, number
        for number, segment in aside.segments.items():
            items, actions = self._interned(segment)
            events.update(enumerate(zip(items, actions or [-1] * size, strict=True), start=number * size))
            if (number + 1) * size - 1 > last_number:
                last_offset, last_number = segment.last_offset, (number + 1) * size - 1
        if last_number < 0:
            return
        count = last_number + 1
        kept_from = self._config.first_kept(count)
        refuse_gaps(self.partition, [(user_id, list(ranges_of(n for n in range(kept_from, count) if n not in events)))])
        buffered = range(max(self._sealed(user), user.first_number), user.event_count)
        deltas = {numbered(user_id, n, life) for n in (*buffered, *aside.deltas) if n < count // size * size}
        segments = {numbered(user_id, n, life) for n in aside.segments if n * size < kept_from}
        segments |= {
            numbered(user_id, n, life)
            for n in range(user.first_number // size, min(kept_from, user.event_count) // size)
        }
        self._supersede(deltas, segments)
        merged = self.users[user_id] = UserHistory(self.partition, kept_from, life)
        kept = [events[number] for number in range(kept_from, count)]
        merged.extend([item for item, _ in kept], [action for _, action in kept])
        merged.last_offset = last_offset

    def _events(self, user_id: str, user: UserHistory) -> Iterator[tuple[int, int]]:
        view = user.view(user_id)
        return zip(view.items.tolist(), view.actions.tolist(), strict=True)
