"""The histories of this process's users. One thread writes; views may be read on any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from xgr_stream.config import HistoryConfig, settings_or_default
from xgr_stream.errors import HistoryError, InvalidEvent
from xgr_stream.history.interner import Interner
from xgr_stream.history.packed import PackedUsers
from xgr_stream.history.records import FIRST_LIFE, Applied, Delta, Segment, Stale, numbered, user_digest, user_hash
from xgr_stream.history.restore import PartitionRestore
from xgr_stream.history.sources import SourcePosition, Watermark, Watermarks
from xgr_stream.history.user import EVENT_BYTES, HistoryView, UserHistory
from xgr_stream.types import UserEvent

_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes; each event makes several."""
MAX_ACTIONS = 32_767
"""Distinct actions that fit an int16."""
USER_BYTES = 280
"""Of a user besides the buffer: the object, the id and the dictionary's entry (275 measured, at 1,000,000 users)."""


def history_bytes(users: int, events: int) -> int:
    """What a store takes for so many users, each with so many events kept."""
    return users * (USER_BYTES + events * EVENT_BYTES)


class HistoryStore:
    """Every user's events in order, numbered from 0; at least the last `keep_events` are kept, by whole segments.

    What the store says of a user depends on the user's events alone, never on when or where they were read: items are
    kept whether or not a catalog knows them, and an event whose offset is already included changes nothing.
    """

    def __init__(self, config: HistoryConfig | None = None) -> None:
        self.config = settings_or_default("config", config, HistoryConfig)
        self._segment_events = self.config.segment_events
        self.item_names = Interner()
        self.action_names = Interner()
        self._users: dict[str, UserHistory | PackedUsers] = {}
        self._packed: dict[int, list[PackedUsers]] = {}
        self._last_offsets: dict[int, int] = {}
        self._restoring: dict[int, PartitionRestore] = {}
        self._forgotten: dict[int, dict[bytes, int]] = {}
        self._watermarks: defaultdict[int, Watermarks] = defaultdict(Watermarks)
        self._num_events = 0
        self._buffer_bytes = 0

    # Events

    def apply(self, event: UserEvent, *, partition: int = 0, offset: int = -1) -> Applied | None:
        """Add an event to its user's history; None when the history includes its offset already.

        `offset` -1: the event comes from no topic and is always new. Raises `InvalidEvent`, with nothing changed, if
        the user's history is in another partition or there are too many distinct actions.
        """
        return self.add(event.user_id, event.item_id, event.action, partition, offset)

    def add(self, user_id: str, item_id: str, action: str | None, partition: int, offset: int) -> Applied | None:
        """`apply`, of an event that is given by its fields: to make an object of each takes as long as to add it."""
        held = self._users.get(user_id)
        user = self._find(user_id) if isinstance(held, PackedUsers) else held
        if user is not None:
            if user.partition != partition:
                raise InvalidEvent(
                    f"partition must be {user.partition}, which holds user {user_hash(user_id)}, not {partition}"
                )
            if 0 <= offset <= user.last_offset:
                return None
        life = FIRST_LIFE
        if user is None and (forgotten := self._forgotten.get(partition)):
            life = forgotten.get(user_digest(user_id), FIRST_LIFE)
            if 0 <= offset <= life:
                return None
        action_number = -1 if action is None else self.add_action(action)
        if user is None:
            user = self._users[user_id] = UserHistory(partition, life=life)
            self._buffer_bytes += len(user.buffer)
        self._buffer_bytes += user.append(self.item_names.add(item_id), action_number)
        self._num_events += 1
        if offset >= 0:
            user.last_offset = offset
            if offset > self._last_offsets.get(partition, -1):
                self._last_offsets[partition] = offset
        count = user.shift + user.end
        segments, rest = divmod(count, self._segment_events)
        if rest:
            return _new(Applied, (count - 1, None, user.life, None))
        first_number = user.first_number
        user.trim(self.config.first_kept(count))
        self._num_events -= user.first_number - first_number
        return Applied(count - 1, segments - 1, user.life)

    def add_copy(
        self, user_id: str, item_id: str, action: str | None, partition: int, offset: int, source: SourcePosition
    ) -> Applied | None:
        """`add`, of an event that is a copy of another topic's record; None, too, when the histories include that."""
        watermarks = self._watermarks[partition]
        if source.offset <= watermarks.offset(source.topic, source.partition):
            return None
        if not watermarks.has_room(source.topic, source.partition):
            raise InvalidEvent(
                f"a copy must be of one of the {len(watermarks)} partitions of other topics that count here, the most "
                f"that may, not of {source.topic!r:.80}, {source.partition}"
            )
        applied = self.add(user_id, item_id, action, partition, offset)
        watermarks.note([source], user_id)  # not of one that is refused: no record of the changelog would hold it
        return None if applied is None else applied._replace(source=source)

    def segment(self, user_id: str, number: int) -> Segment:
        """The segment that the user's last event completed, for the changelog."""
        user, size = self._find(user_id), self.config.segment_events
        if user is None:
            raise HistoryError(f"user must have a history, and {user_hash(user_id)} has none")
        if user.event_count != (number + 1) * size:
            raise HistoryError(
                f"segment must be the one just completed, {user.event_count // size - 1}, not {number!r}"
            )
        view = user.view(user_id)
        actions = [self.action_names[a] if a >= 0 else None for a in view.actions[-size:].tolist()]
        return Segment(
            user.last_offset,
            [self.item_names[i] for i in view.items[-size:].tolist()],
            actions if any(a is not None for a in actions) else None,
            self.sources(user.partition, user_id),
        )

    def forget_at(self, user_id: str, *, partition: int, offset: int) -> Stale | None:
        """Forget all that a user did before `offset` of the partition; it, and anything older, will count no more.

        Returns the changelog's keys of it, to be tombstoned once it is durable that the user was forgotten. None: the
        user was never known, or this was done already. Raises `InvalidEvent` for a user of another partition.
        """
        user = self._find(user_id)
        if user is None:
            return None
        if user.partition != partition:
            raise InvalidEvent(
                f"partition must be {user.partition}, which holds user {user_hash(user_id)}, not {partition}"
            )
        if offset <= max(user.life, user.last_offset):
            return None
        size, stale = self.config.segment_events, Stale()
        sealed = user.event_count // size
        stale.deltas |= {numbered(user_id, n, user.life) for n in range(sealed * size, user.event_count)}
        stale.segments |= {numbered(user_id, n, user.life) for n in range(user.first_number // size, sealed)}
        digest, forgotten = user_digest(user_id), self._forgotten.setdefault(partition, {})
        if digest in forgotten:
            stale.forgets.add((digest, forgotten[digest]))
        forgotten[digest] = offset
        self._last_offsets[partition] = max(offset, self._last_offsets.get(partition, -1))
        if partition in self._watermarks:
            self._watermarks[partition].forget(user_id, digest)
        self.forget(user_id)
        return stale

    def view(self, user_id: str) -> HistoryView | None:
        """The user's history as it is now; None for a user without events."""
        user = self._find(user_id)
        return None if user is None else user.view(user_id)

    # Partitions

    def users(self, partition: int) -> list[str]:
        """The users of a partition, the most recently active first. Unpacks and looks at every user of the store."""
        found = [(user.last_offset, user_id) for user_id, user in self._histories() if user.partition == partition]
        found.sort(key=lambda entry: entry[0], reverse=True)
        return [user_id for _, user_id in found]

    def user_ids(self) -> list[str]:
        """All users, in no order."""
        return list(self._users)

    def forgotten(self, partition: int) -> dict[bytes, int]:
        """Digests of the partition's users who were forgotten, and the offset at which they last were. A copy."""
        return dict(self._forgotten.get(partition, {}))

    def watermark(self, partition: int, topic: str, source_partition: int) -> int:
        """The highest offset of a source's partition that the partition's histories include, -1 for none."""
        watermarks = self._watermarks.get(partition)
        return -1 if watermarks is None else watermarks.offset(topic, source_partition)

    def watermarks(self, partition: int) -> list[Watermark]:
        """How far the partition's histories include what its events are copies of."""
        return list(self._watermarks.get(partition, ()))

    def sources(self, partition: int, holder: str | bytes) -> Sequence[SourcePosition]:
        """The watermarks that a user, or the digest of one who was forgotten, holds."""
        watermarks = self._watermarks.get(partition)
        return () if watermarks is None else watermarks.held_by(holder)

    def partition(self, user_id: str) -> int | None:
        """The partition that holds the user's history."""
        user = self._users.get(user_id)
        return None if user is None else user.partition

    def user_offset(self, user_id: str) -> int:
        """Offset of the user's last event; -1: none, or none from a topic."""
        user = self._find(user_id)
        return -1 if user is None else user.last_offset

    def last_offset(self, partition: int) -> int:
        """Highest event offset that any history of the partition includes, -1 for none."""
        return self._last_offsets.get(partition, -1)

    def drop(self, partition: int) -> list[str]:
        """Forget every user of a partition that is now somebody else's, and return them."""
        for packed in self._packed.pop(partition, ()):
            if self._users.get(packed.ids[0]) is packed:
                self._num_events -= packed.num_events
                self._buffer_bytes -= packed.num_events * EVENT_BYTES
        dropped = [user_id for user_id, user in self._users.items() if user.partition == partition]
        for user_id in dropped:
            user = self._users.pop(user_id)
            if isinstance(user, UserHistory):
                self._uncount(user)
        self._last_offsets.pop(partition, None)
        self._restoring.pop(partition, None)
        self._forgotten.pop(partition, None)
        self._watermarks.pop(partition, None)
        return dropped

    def forget(self, user_id: str) -> bool:
        """Drop one user from memory; False if there was none. An engine's prefix of theirs still holds what they did,
        and would be answered from when they come back: `Engine.forget` them too."""
        user = self._find(user_id)
        if user is None:
            return False
        del self._users[user_id]
        self._uncount(user)
        return True

    def _uncount(self, user: UserHistory) -> None:
        self._num_events -= user.end - user.start
        self._buffer_bytes -= len(user.buffer)

    # Users that came from a snapshot

    def unpack_some(self) -> bool:
        """Make histories of their own of a few hundred users who came from a snapshot (about a millisecond); False if
        there are none left. Others are unpacked when they are first needed."""
        for partition, waiting in self._packed.items():
            if waiting:
                packed = waiting.pop()
                if self._users.get(packed.ids[0]) is packed:
                    self._users.update(packed.unpacked())
                return True
            del self._packed[partition]
            return True
        return False

    def _find(self, user_id: str) -> UserHistory | None:
        user = self._users.get(user_id)
        if isinstance(user, PackedUsers):
            self._users.update(user.unpacked())
            return self._find(user_id)
        return user

    def _histories(self) -> list[tuple[str, UserHistory]]:
        """All users, unpacked."""
        while self.unpack_some():
            pass
        return [(user_id, user) for user_id, user in self._users.items() if isinstance(user, UserHistory)]

    # Restoring a partition from its changelog

    def restoring(self, partition: int) -> PartitionRestore:
        """What the partition's changelog, or a snapshot, is fed to until `finish_restore`."""
        restore = self._restoring.get(partition)
        if restore is None:
            restore = self._restoring[partition] = PartitionRestore(
                partition, self.config, self.item_names, self.action_names, self.add_action
            )
        return restore

    def stop_restoring(self, partition: int) -> None:
        """Drop what was fed for a partition; of one that is restored nothing changes."""
        self._restoring.pop(partition, None)

    def restore_delta(
        self, partition: int, user_id: str, number: int, delta: Delta | None, life: int = FIRST_LIFE
    ) -> None:
        """Feed the changelog's record of one event, None for its tombstone."""
        self.restoring(partition).delta(user_id, number, delta, life)

    def restore_segment(
        self, partition: int, user_id: str, number: int, segment: Segment | None, life: int = FIRST_LIFE
    ) -> None:
        """Feed the changelog's record of one segment, None for its tombstone."""
        self.restoring(partition).segment(user_id, number, segment, life)

    def finish_restore(self, partition: int) -> Stale:
        """Check that the partition's histories are without gaps, and return the superfluous keys of its changelog.

        Raises `HistoryError` naming the users (hashed) and numbers that are missing; the partition can't be served.
        """
        restore = self.restoring(partition)
        try:
            stale = restore.finish()
        finally:
            del self._restoring[partition]
        twice = self._users.keys() & restore.users.keys()
        if twice:
            raise HistoryError(
                f"the changelog of partition {partition} holds {len(twice)} users whose history is here already, such "
                f"as {user_hash(min(twice))}: was the number of the topic's partitions changed?"
            )
        last_offset = max(restore.forgotten.values(), default=-1)
        for user in restore.users.values():
            if isinstance(user, UserHistory):
                self._num_events += user.end - user.start
                self._buffer_bytes += len(user.buffer)
                if user.last_offset > last_offset:
                    last_offset = user.last_offset
        for packed in restore.still_packed():
            self._num_events += packed.num_events
            self._buffer_bytes += packed.num_events * EVENT_BYTES
            last_offset = max(last_offset, int(packed.last_offsets.max()))
        self._users.update(restore.users)
        self._packed[partition] = restore.still_packed()
        self._last_offsets[partition] = last_offset
        if restore.forgotten:
            self._forgotten[partition] = restore.forgotten
        if restore.watermarks:
            self._watermarks[partition] = restore.watermarks
        return stale

    def check_actions(self, names: Iterable[str]) -> None:
        """Raise `InvalidEvent` if `add_action` would refuse one of these, added together."""
        new = {name for name in names if self.action_names.get(name) is None}
        if len(self.action_names) + len(new) > MAX_ACTIONS:
            raise InvalidEvent(f"action must be one of at most {MAX_ACTIONS} distinct ones, and {len(new)} are new")

    def add_action(self, name: str) -> int:
        """The number of an action, a new one if it has none. Raises `InvalidEvent` when there are too many."""
        number = self.action_names.get(name)
        if number is None:
            if len(self.action_names) >= MAX_ACTIONS:
                raise InvalidEvent(
                    f"action must be one of at most {MAX_ACTIONS} distinct ones, and {name!r} is another"
                )
            number = self.action_names.add(name)
        return number

    # Size

    @property
    def num_users(self) -> int:
        return len(self._users)

    @property
    def num_events(self) -> int:
        """Events kept, over all users."""
        return self._num_events

    @property
    def memory_bytes(self) -> int:
        """What the histories take, roughly: buffers as they are, and `USER_BYTES` for each user. Without item names."""
        return self._buffer_bytes + USER_BYTES * len(self._users)

    def check_integrity(self) -> None:
        """Raise `HistoryError` if the store contradicts itself. Looks at every event."""
        users = [user for _, user in self._histories()]
        for name, counted, actual in (
            ("num_events", self._num_events, sum(user.end - user.start for user in users)),
            ("buffer_bytes", self._buffer_bytes, sum(len(user.buffer) for user in users)),
        ):
            if counted != actual:
                raise HistoryError(f"{name} must be {actual}, not {counted}")
        for user_id, user in self._histories():
            self._check_user(user_id, user)

    def _check_user(self, user_id: str, user: UserHistory) -> None:
        view = user.view(user_id)
        healthy = (
            0 <= user.start < user.end <= user.capacity
            and user.first_number == self.config.first_kept(user.event_count)
            and view.items.min() >= 0
            and view.items.max() < len(self.item_names)
            and view.actions.min() >= -1
            and view.actions.max() < len(self.action_names)
            and user.last_offset <= max(self.last_offset(user.partition), -1)
        )
        if not healthy:
            raise HistoryError(f"the history of user {user_hash(user_id)} is inconsistent: {view!r}")
