"""Batches of records, read within bounds.

aiokafka 0.14 decompresses a batch whole, which may be a thousand times what a broker took, and makes two objects of
each of its headers, which may be millions. It reads nothing of a batch with one header whose name is not UTF-8, which
librdkafka can write, and a consumer comes past it in no way but by leaving out all of it; one that can't be
decompressed ends whoever reads it; and a number that goes on behind the end is read from whatever is there. So records
of a recommender's topics are read here, in Kafka's format 2 (https://kafka.apache.org/documentation/#recordbatch).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import aiokafka.consumer.fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

from xgr_stream.config import MAX_BATCH_BYTES, MIB, TopicNames
from xgr_stream.errors import MalformedMessage, MessageTooLarge
from xgr_stream.stream.decompress import decompressed
from xgr_stream.stream.records import DEAD_LETTER_BYTES, MAX_HEADERS, Unread

BESIDE_VALUE_BYTES = 64 * 1024
"""Of a record's key and headers, besides a value as large as it may be."""
FETCH_BYTES = 16 * MIB
"""Of what a fetch brought of a partition, once it is decompressed: the batches behind so much are fetched again. What
is read in one go blocks the event loop, and its records are in memory together."""

logger = logging.getLogger(__name__)

_FRAME = 12
"""Bytes of a batch in front of what its length counts."""
_HEAD = 61
"""Bytes of a batch of format 2 in front of its records."""
_FORMAT, _ATTRIBUTES, _COUNT = 16, 22, slice(57, 61)
_CODEC = 7
_PADDING = bytes(64)
"""Behind the last record: aiokafka's numbers, of up to ten bytes, don't heed the end. A record has six in a row."""


class Limits(NamedTuple):
    """Of a record. What is larger is not read."""

    record_bytes: int = MAX_BATCH_BYTES
    headers: int = MAX_HEADERS


_NO_LIMITS = Limits(1 << 62, 1 << 62)
_limits: dict[str, Limits] = {}
"""Of topics that are read within bounds."""


def read_any_batch() -> None:
    """Have all consumers of this process read records with any names of headers, with '?' for each byte that is not
    ASCII of a name that is not UTF-8."""
    aiokafka.consumer.fetcher.MemoryRecords = Batches
    aiokafka.consumer.fetcher.PartitionRecords = _PartitionRecords


def bound_batches(topics: Iterable[str], limits: Limits) -> None:
    """Have batches of these topics decompressed to `MAX_BATCH_BYTES` at most. In place of records that are past the
    limits, and of those behind something that can't be read, come some whose value is `Unread`, for whoever reads the
    topic in this process: the widest limits that any of them named."""
    for topic in topics:
        _limits[topic] = Limits(*map(max, limits, _limits.get(topic, limits)))


def bound_topics(topics: TopicNames, max_message_bytes: int) -> None:
    """Have a recommender's topics read within bounds. What workers write themselves may be as large as a batch."""
    bound_batches((topics.responses, topics.changelog, topics.dead_letters), Limits())
    bound_batches((topics.events, topics.requests, topics.catalog), Limits(max_message_bytes + BESIDE_VALUE_BYTES))


def bound_others(topics: Iterable[str]) -> None:
    """Have topics that are not ours read as they ever were, but for batches that can't be decompressed."""
    bound_batches(topics, _NO_LIMITS)


class _PartitionRecords(aiokafka.consumer.fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(self, tp: Any, records: Any, *others: Any) -> None:
        records.limits = _limits.get(tp.topic)
        super().__init__(tp, records, *others)

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        """Of a batch that compaction has emptied, false, as Java's consumer has it: a broker keeps a producer's last
        marker so, and aiokafka 0.14 raises for it, at the same offset for ever. What it ended was taken before it."""
        return not next_batch.is_empty and bool(super()._contains_abort_marker(next_batch))


class Batches:
    """`MemoryRecords`, as aiokafka's fetcher uses them."""

    def __init__(self, data: bytes, limits: Limits | None = None) -> None:
        """None: nothing is bounded."""
        self.limits = limits
        self.read_bytes = 0
        """By those who are bounded."""
        self._data = data
        self._at = 0

    def size_in_bytes(self) -> int:
        return len(self._data)

    def has_next(self) -> bool:
        """Once it has none the consumer fetches what is behind the last batch."""
        return self.read_bytes < FETCH_BYTES and self._end() <= len(self._data)

    def next_batch(self) -> Any:
        """Each by itself: aiokafka 0.14 takes all to be of the first one's format, and a segment may hold several."""
        begin, self._at = self._at, self._end()
        data = self._data[begin : self._at]
        batch = MemoryRecords(data).next_batch()
        return None if batch is None else _Batch(batch, data, self)

    def _end(self) -> int:
        """Of the next batch, if it is whole."""
        return self._at + _FRAME + int.from_bytes(self._data[self._at + 8 : self._at + _FRAME], "big")


class _Record(NamedTuple):
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


class _Batch:
    def __init__(self, batch: Any, data: bytes, batches: Batches) -> None:
        self._batch = batch
        self._data = data
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    @property
    def is_empty(self) -> bool:
        return self._data[_FORMAT] >= 2 and not any(self._data[_COUNT])

    @property
    def next_offset(self) -> int:
        """Behind the batch, whatever it says: a consumer would go back, and come again."""
        behind: int = max(self._batch.next_offset, self._batch.base_offset + 1)
        return behind

    def __iter__(self) -> Iterator[Any]:
        limits = self._batches.limits
        if limits is None or self._data[_FORMAT] < 2:
            return self._with_any_names()
        return self._within(limits)

    def _with_any_names(self) -> Iterator[Any]:
        done = 0
        try:
            for record in self._batch:
                done += 1
                yield record
        except (UnicodeDecodeError, CorruptRecordException) as error:  # its reader in Python wraps the former
            if not isinstance(error.__cause__ or error, UnicodeDecodeError):
                raise
            batch: Any = _DefaultRecordBatchPy(self._data)
            batch._maybe_uncompress()
            for number, record in enumerate(self._read(bytes(batch._buffer[batch._pos :]), _NO_LIMITS)):
                if number >= done:
                    yield record

    def _within(self, limits: Limits) -> Iterator[Any]:
        begin, end = self._batch.base_offset, self.next_offset
        try:
            records: bytes | bytearray | memoryview = memoryview(self._data)[_HEAD:]
            codec = self._data[_ATTRIBUTES] & _CODEC
            if codec and len(records):  # compaction leaves empty batches
                self._batches.read_bytes += MAX_BATCH_BYTES  # what it may take to find that it can't be read
                records = decompressed(codec, memoryview(records))
                self._batches.read_bytes -= MAX_BATCH_BYTES
            self._batches.read_bytes += len(records)
            for record in self._read(records, limits):
                begin = record.offset + 1
                yield record
        except (MessageTooLarge, CorruptRecordException) as error:
            if begin < end:
                yield self._unread(begin, end - 1, error)
            else:
                logger.warning("what is behind record %d in its batch is no record: %s", end - 1, error)

    def _unread(self, first: int, last: int, error: Exception) -> _Record:
        """The last of the batch's offsets, in place of all from the first on."""
        kind = MessageTooLarge if isinstance(error, MessageTooLarge) else MalformedMessage
        why = f"records {first} to {last}, of a batch of {len(self._data)} bytes, can't be read: {error.args[0]}"
        batch = self._batch
        return _Record(last, batch.max_timestamp, batch.timestamp_type, None, Unread(kind(why)), [])

    def _read(self, records: bytes | bytearray | memoryview, limits: Limits) -> Iterator[_Record]:
        """Raises `CorruptRecordException` at the first that is none."""
        data, end = b"".join((records, _PADDING)), len(records)
        batch, most = self._batch, limits.record_bytes
        base, first, kind = batch.base_offset, batch.first_timestamp, batch.timestamp_type
        appended = batch.max_timestamp if kind else None
        before, behind = base - 1, self.next_offset
        varint, at = decode_varint, 0
        try:
            for _ in range(int.from_bytes(self._data[_COUNT], "big", signed=True)):
                size, begin = varint(data, at)
                if not 0 < size <= end - begin:
                    raise CorruptRecordException(f"a record of {size} bytes has {end - begin}")
                stop = begin + size
                timestamp, at = varint(data, begin + 1)  # behind its attributes
                offset, at = varint(data, at)
                size, at = varint(data, at)
                key, at = _field(at, size, stop)
                size, at = varint(data, at)
                value, at = _field(at, size, stop)
                count, at = varint(data, at)
                if count < 0 or at > stop:
                    raise CorruptRecordException(f"a record of {stop - begin} bytes has {count} headers")
                offset, timestamp = base + offset, first + timestamp if appended is None else appended
                if not before < offset < behind:
                    raise CorruptRecordException(f"a record of offset {offset} is behind one of {before}")
                if not -_INT64 <= timestamp < _INT64:
                    timestamp = -1  # none is known
                before = offset
                if stop - begin > most or count > limits.headers:
                    what = f"{most} bytes with {limits.headers} headers, not {stop - begin} with {count}"
                    error = MessageTooLarge(f"a record must be at most {what}")
                    kept = Unread(error) if value is None else _kept(data, value, error)
                    keys = None if key is None else _kept(data, key, error)
                    yield _Record(offset, timestamp, kind, keys, kept, [])
                    at = stop
                    continue
                headers = []
                for _ in range(count):
                    size, at = varint(data, at)
                    name, at = _field(at, size, stop)
                    size, at = varint(data, at)
                    field, at = _field(at, size, stop)
                    headers.append((_name(data, name), None if field is None else data[field]))
                if at != stop:
                    raise CorruptRecordException(f"a record of {stop - begin} bytes has fields of {at - begin}")
                yield _new(
                    _Record,
                    (
                        *(offset, timestamp, kind),
                        *(None if key is None else data[key], None if value is None else data[value], headers, None),
                    ),
                )
        except ValueError as error:
            raise CorruptRecordException(f"a number is too long: {error}") from error
        if at != end:
            raise CorruptRecordException(f"{end - at} bytes are behind the last record")


_new = tuple.__new__
_INT64 = 1 << 63


def _field(at: int, size: int, stop: int) -> tuple[slice | None, int]:
    """Of so many bytes, negative: there is none; and where it ends."""
    if size < 0:
        return None, at
    if size > stop - at:
        raise CorruptRecordException(f"a field of {size} bytes has {stop - at}")
    return slice(at, at + size), at + size


def _kept(data: bytes, field: slice, error: MessageTooLarge) -> Unread:
    return Unread(error, data[field.start : min(field.stop, field.start + DEAD_LETTER_BYTES)], field.stop - field.start)


def _name(data: bytes, field: slice | None) -> str:
    if field is None:
        raise CorruptRecordException("a header has no name")
    name = data[field]
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("ascii", "replace").replace("\N{REPLACEMENT CHARACTER}", "?")
