"""Events: record → history → changelog. A null value: the key's user is forgotten."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from xgr_stream.config import StreamConfig
from xgr_stream.errors import InvalidEvent, InvalidInput, Misplaced
from xgr_stream.history import Applied, HistoryStore, SourcePosition, user_digest
from xgr_stream.metrics import Metrics
from xgr_stream.stream import changelog, codec, protocol
from xgr_stream.stream.outbox import Outbox, Output
from xgr_stream.stream.partition import Partition
from xgr_stream.stream.partitioner import Placement
from xgr_stream.stream.records import Produce, Record
from xgr_stream.stream.source_header import source_of
from xgr_stream.types import UserEvent, check_user_id

logger = logging.getLogger(__name__)

_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes; each event makes several."""

DecodeEvent = Callable[[Record], UserEvent | None]
"""None: the record is none of ours; it is passed over."""

_Event = tuple[str, str, str | None]
"""User, item and action."""

MAX_LOGGED_ITEMS = 10_000
"""Unknown items that are named in the log, once each, before it falls silent about them."""
REWOUND = 10_000
"""Source offsets that a copy must be below its watermark for this to be logged."""


class _Written:
    """Events of one partition that go to the changelog together."""

    __slots__ = ("last", "offsets", "partition", "produces", "sealed")

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.clear()

    def clear(self) -> None:
        self.last: Record | None = None
        self.offsets: list[int] = []
        self.produces: list[Produce] = []
        self.sealed: list[tuple[str, int, int]] = []
        """User, segment and life of the segments that they completed."""


class Ingest:
    """Takes in event records. An event is acknowledged when its changelog record is; a replayed one at once.

    `on_forget` is called with each user who is to be forgotten beyond the history."""

    def __init__(
        self,
        history: HistoryStore,
        outbox: Outbox,
        config: StreamConfig,
        *,
        placement: Placement,
        knows_item: Callable[[str], bool],
        decode_event: DecodeEvent | None,
        on_forget: Callable[[str], None],
        metrics: Metrics,
    ) -> None:
        self._history = history
        self._outbox = outbox
        self._config = config
        self._placement = placement
        self._knows_item = knows_item
        self._decode_event = decode_event or self._decode_ours
        self._ours = decode_event is None
        self._on_forget = on_forget
        self._metrics = metrics
        self._logged_items: set[str] = set()
        self._rewound: set[tuple[int, str, int]] = set()

    def take(self, partition: Partition, records: Iterable[Record]) -> set[str]:
        """Process events of a restored partition, in offset order. Returns the users whose history grew."""
        grown: set[str] = set()
        written = _Written(partition)
        added = replayed = 0
        changelog_topic, number = self._config.topics.changelog, partition.number
        history, knows_item = self._history, self._knows_item
        for record in records:
            _, _, offset, key, value, _, headers = record
            partition.events_seen = offset
            try:
                if value is None:
                    self._put(written)
                    user_id = self._forget(partition, record)
                    grown.discard(user_id)
                    continue
                event = self._plain(key, value) or self._read(record)
                if event is None:
                    partition.events.acknowledge(offset)
                    continue
                user_id, item_id, action = event
                self._placement.check(user_id, number)
                if headers and (source := source_of(headers)) is not None:
                    applied = self._add_copy(event, number, offset, source)
                else:
                    applied = history.add(user_id, item_id, action, number, offset)
            except InvalidInput as error:
                if isinstance(error, Misplaced):
                    self._metrics.misplaced_records.labels(record.topic).inc()
                self._put(written)
                self._outbox.dead_letter(partition, record, error)
            else:
                if applied is None:
                    replayed += 1
                    partition.events.acknowledge(offset)
                else:
                    added += 1
                    grown.add(user_id)
                    if not knows_item(item_id):
                        self._note_unknown(item_id)
                    if applied.sealed is not None:
                        written.sealed.append((user_id, applied.sealed, applied.life))
                    key, value = changelog.written(user_id, item_id, action, offset, applied, history)
                    written.last = record
                    written.offsets.append(offset)
                    written.produces.append(_new(Produce, (changelog_topic, number, key, value, (), True)))
        self._put(written)
        self._metrics.events.inc(added)
        self._metrics.events_replayed.inc(replayed)
        return grown

    def _add_copy(self, event: _Event, number: int, offset: int, source: SourcePosition) -> Applied | None:
        """Add a copy of another topic's record to its user's history; None: it was there already.

        A copy that is not above the watermark of its source's partition came before. For a repartitioner writes copies
        in their order, what fails again before anything behind it, and begins at the group's committed offset, below
        which all copies are durable; so before any copy each one below it was written at least once, whatever others,
        frozen ones too, write in between. The watermark is a function of the events up to here, so that all workers
        that come to a copy decide alike.
        """
        applied = self._history.add_copy(*event, number, offset, source)
        if applied is None:
            self._note_rewound(number, source)
        return applied

    def _note_rewound(self, number: int, source: SourcePosition) -> None:
        """Say once if this is no copy that was written twice."""
        name = (number, source.topic, source.partition)
        behind = self._history.watermark(number, source.topic, source.partition) - source.offset
        if behind >= REWOUND and name not in self._rewound:
            self._rewound.add(name)
            logger.warning(
                "events partition %d passes over copies of %s-%d, %d offsets below what it has counted: its offsets "
                "were set back; or these events are missing, since the topic was made anew or a record named a "
                "position that it has not come to (docs/operations.md)",
                *name,
                behind,
            )

    def tombstones(self, partition: Partition, entries: Iterable[changelog.Entry]) -> None:
        """Delete keys from the changelog; no offset waits for it."""
        produces = tuple(self._produce(partition, entry) for entry in entries)
        if produces:
            self._outbox.put(Output(partition, produces))

    def _plain(self, key: bytes | None, value: bytes) -> _Event | None:
        """An event of our protocol as nearly all are; None: it is for `_read` to say what this is."""
        if self._ours and len(value) <= self._config.max_message_bytes:
            message = codec.decode_short(value)
            return None if message is None else protocol.plain_event(message, key)
        return None

    def _read(self, record: Record) -> _Event | None:
        """The record's event; None for a record to pass over. Raises `InvalidInput`."""
        codec.check_size(b"" if record.value is None else record.value, self._config.max_message_bytes)
        try:
            event = protocol.returned_event(self._decode_event(record))
        except (InvalidInput, MemoryError):  # for want of memory no event is put aside: it is sound
            raise
        except Exception as error:
            logger.debug("decode_event failed on %s-%d", record.topic, record.partition, exc_info=True)
            raise InvalidEvent(f"the record can't be read as an event: {type(error).__name__}") from error
        return None if event is None else (event.user_id, event.item_id, event.action)

    def _forget(self, partition: Partition, record: Record) -> str:
        """Forget the user whose key has a null value. Their records in the changelog go once it is durable that they
        were forgotten, and the record's offset waits for that too. Raises `InvalidInput`."""
        try:
            user_id = check_user_id((record.key or b"").decode())
        except UnicodeDecodeError:
            raise InvalidEvent("key must be the id of the user to forget, in UTF-8") from None
        self._placement.check(user_id, record.partition)
        stale = self._history.forget_at(user_id, partition=record.partition, offset=record.offset)
        if stale is None:
            self._metrics.events_replayed.inc()
            partition.events.acknowledge(record.offset)
            return user_id
        self._metrics.users_forgotten.inc()
        self._on_forget(user_id)

        def clean_up() -> None:
            entries = changelog.stale_entries(stale)
            self._outbox.put(Output(partition, tuple(self._produce(partition, e) for e in entries), record=record))

        held = self._history.sources(record.partition, user_digest(user_id))
        entry = changelog.forget_entry(user_id, record.offset, held)
        self._outbox.put(Output(partition, (self._produce(partition, entry),), then=clean_up))
        return user_id

    def _decode_ours(self, record: Record) -> UserEvent:
        message = codec.decode(record.value, self._config.max_message_bytes)
        return protocol.parse_event(message, record.key)

    def _produce(self, partition: Partition, entry: changelog.Entry) -> Produce:
        return Produce(self._config.topics.changelog, partition.number, entry.key, entry.value)

    def _put(self, written: _Written) -> None:
        """Have these events written, as one output: to follow each by itself takes as long as all the rest."""
        if written.last is None:
            return
        then = self._clean_up(written.partition, written.sealed) if written.sealed else None
        output = Output(written.partition, written.produces, record=written.last, then=then)
        output.offsets = written.offsets
        self._outbox.put(output)
        written.clear()

    def _clean_up(self, partition: Partition, sealed: list[tuple[str, int, int]]) -> Callable[[], None]:
        def write() -> None:
            for user_id, segment, life in sealed:
                self.tombstones(partition, changelog.superseded_by(user_id, segment, self._history.config, life))

        return write

    def _note_unknown(self, item_id: str) -> None:
        self._metrics.events_unknown_item.inc()
        if item_id not in self._logged_items and len(self._logged_items) < MAX_LOGGED_ITEMS:
            self._logged_items.add(item_id)
            logger.warning("the catalog does not know item %r; its events are kept, without tokens", item_id)
