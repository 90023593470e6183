"""Batches of records that aiokafka 0.14 reads nothing of, or all too much.

One header whose name is not UTF-8, which librdkafka can write, and nothing of its batch is read: a consumer comes past
it in no way but by leaving out all of it. A batch that can't be decompressed ends whoever reads it. And a few kilobytes
may decompress to gigabytes, or to a record of millions of headers, each of which is two objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

from xgr_stream.config import MAX_BATCH_BYTES, TopicNames
from xgr_stream.errors import InvalidInput, MalformedMessage, MessageTooLarge
from xgr_stream.stream.decompress import decompressed
from xgr_stream.stream.records import DEAD_LETTER_BYTES, MAX_HEADERS, Unread

BESIDE_VALUE_BYTES = 64 * 1024
"""Of a record's key and headers, besides a value as large as it may be."""
RUN, SMALL = 500, 16 * 1024
"""Records that are looked at together, before they are read; so many bytes need not be, whatever they hold."""

_FRAME = 12
"""Bytes of a batch in front of what its length counts."""
_HEAD = 61
"""Bytes of a batch of version 2 in front of its records."""
_VERSION, _ATTRIBUTES, _COUNT = 16, 22, slice(57, 61)
_CODEC = 7

_most: dict[str, int] = {}
"""Of topics that are read within bounds: bytes of a record."""


def read_any_batch() -> None:
    """Have all consumers of this process read records with any names of headers, with '?' for each byte of a name that
    is not ASCII."""
    aiokafka.consumer.fetcher.MemoryRecords = Batches
    aiokafka.consumer.fetcher.PartitionRecords = _PartitionRecords


def bound_batches(topics: Iterable[str], most: int = MAX_BATCH_BYTES) -> None:
    """Have batches of these topics read within bounds: decompressed to `MAX_BATCH_BYTES`, records of `most` bytes and
    `MAX_HEADERS` headers. In place of a record that is larger, and of all that can't be read, comes one whose value is
    `Unread`. An application's own topics are read as they ever were."""
    _most.update(dict.fromkeys(topics, most))


def bound_topics(topics: TopicNames, max_message_bytes: int) -> None:
    """Have a recommender's topics read within bounds. What workers write themselves may be as large as a batch."""
    bound_batches((topics.responses, topics.changelog, topics.dead_letters))
    bound_batches((topics.events, topics.requests, topics.catalog), max_message_bytes + BESIDE_VALUE_BYTES)


class _PartitionRecords(aiokafka.consumer.fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(self, tp: Any, records: Any, *others: Any) -> None:
        records.most = _most.get(tp.topic)
        super().__init__(tp, records, *others)


class Batches:
    """`MemoryRecords`, as aiokafka's fetcher uses them."""

    def __init__(self, data: bytes, most: int | None = None) -> None:
        """`most`: bytes of a record; None: nothing is bounded."""
        self.most = most
        self._data = data
        self._records = MemoryRecords(data)
        self._at = 0
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        begin = self._at
        self._at += _FRAME + int.from_bytes(self._data[begin + 8 : begin + _FRAME], "big")
        return None if batch is None else _Batch(batch, self._data[begin : self._at], self.most)


class _Batch:
    def __init__(self, batch: Any, data: bytes, most: int | None) -> None:
        self._batch = batch
        self._data = data
        self._most = most if data[_VERSION] == 2 else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        return self._with_any_names() if self._most is None else self._within_bounds(self._most)

    def _with_any_names(self) -> Iterator[Any]:
        done = 0
        try:
            for record in self._batch:
                done += 1
                yield record
        except UnicodeDecodeError:
            batch: Any = _DefaultRecordBatchPy(self._data)
            batch._maybe_uncompress()
            yield from _records(bytearray(self._data[:_HEAD]) + batch._buffer[batch._pos :], done, MAX_BATCH_BYTES)

    def _within_bounds(self, most: int) -> Iterator[Any]:
        begin, end = self._batch.base_offset, self._batch.next_offset
        try:
            for record in _records(_plain(self._data), 0, most):
                begin = record.offset + 1
                yield record
        except (MessageTooLarge, CorruptRecordException) as error:
            if begin < end:
                yield self._unread(begin, end - 1, error)

    def _unread(self, first: int, last: int, error: Exception) -> Any:
        """The last of the batch's offsets, in place of all from the first on."""
        kind = MessageTooLarge if isinstance(error, MessageTooLarge) else MalformedMessage
        why = f"records {first} to {last}, of a batch of {len(self._data)} bytes, can't be read: {error.args[0]}"
        return _record(self._batch, last, self._batch.max_timestamp, None, Unread(kind(why)))


def _plain(data: bytes) -> bytearray:
    """A batch without its codec. Raises `MessageTooLarge` and `CorruptRecordException`."""
    found = bytearray(data)
    if codec := data[_ATTRIBUTES] & _CODEC:
        found[_HEAD:] = decompressed(codec, memoryview(data)[_HEAD:])
    return found


def _records(data: bytearray, done: int, most: int) -> Iterator[Any]:
    """Those of a batch in which nothing is compressed, but for so many. Raises `CorruptRecordException`."""
    batch = DefaultRecordBatch(_run(data, 0, 0, 0))
    at = _skip(data, _HEAD, done)
    left = int.from_bytes(data[_COUNT], "big", signed=True) - done
    while left > 0:
        count, end, large = left, len(data), None
        if end - at > SMALL:
            count, end, large = _look_ahead(data, at, min(left, RUN), most)
        done = 0
        try:
            for record in DefaultRecordBatch(_run(data, at, end, count)):
                done += 1
                yield record
        except UnicodeDecodeError:
            at, left = _skip(data, at, done), left - done
            _make_readable(data, at, count - done)
            continue
        at, left = end, left - count
        if large is not None:
            yield _unread_record(batch, data, at, large)
            at, left = _skip(data, at, 1), left - 1


def _run(data: bytearray, begin: int, end: int, count: int) -> bytearray:
    """A batch of a part of one's records."""
    run = data[:_HEAD]
    run[_ATTRIBUTES] &= ~_CODEC
    run[_COUNT] = count.to_bytes(4, "big")
    run += memoryview(data)[begin:end]
    return run


def _look_ahead(data: bytearray, at: int, count: int, most: int) -> tuple[int, int, MessageTooLarge | None]:
    """Of so many records: how many can be read in one go, where they end, and what is wrong with the next one if it is
    too large."""
    for number in range(count):
        size, begin = _varint(data, at)
        if size < 0 or begin + size > len(data):
            raise CorruptRecordException(f"a record of {size} bytes has {len(data) - begin}")
        headers = _Parts(data, at).num_headers if size > 2 * MAX_HEADERS else 0
        if size > most or headers > MAX_HEADERS:
            what = f"a record must be at most {most} bytes with {MAX_HEADERS} headers, not {size} with {headers}"
            return number, at, MessageTooLarge(what)
        at = begin + size
    return count, at, None


def _skip(data: bytearray, at: int, count: int) -> int:
    """Where the record begins that is behind so many."""
    for _ in range(count):
        size, at = _varint(data, at)
        at += size
    return at


class _Parts:
    """Where the parts of the record that begins there are."""

    def __init__(self, data: bytearray, at: int) -> None:
        _, at = _varint(data, at)
        self.timestamp_delta, at = _varint(data, at + 1)  # behind its attributes
        self.offset_delta, at = _varint(data, at)
        self.key, at = _sized(data, at)
        self.value, at = _sized(data, at)
        self.num_headers, self.headers = _varint(data, at)


def _unread_record(batch: Any, data: bytearray, at: int, error: InvalidInput) -> Any:
    """In place of the record that begins there: what a dead letter tells of it."""
    parts = _Parts(data, at)
    key = None if parts.key is None else bytes(data[parts.key][:DEAD_LETTER_BYTES])
    value, size = b"", None
    if parts.value is not None:
        size = parts.value.stop - parts.value.start
        value = bytes(data[parts.value.start : parts.value.start + min(size, DEAD_LETTER_BYTES)])
    timestamp = batch.max_timestamp if batch.timestamp_type else batch.first_timestamp + parts.timestamp_delta
    return _record(batch, batch.base_offset + parts.offset_delta, timestamp, key, Unread(error, value, size))


def _record(batch: Any, offset: int, timestamp: int, key: bytes | None, value: Unread) -> Any:
    kind = batch.timestamp_type
    return SimpleNamespace(
        offset=offset, timestamp=timestamp, timestamp_type=kind, checksum=None, key=key, value=value, headers=[]
    )


def _make_readable(data: bytearray, at: int, count: int) -> None:
    """The names of headers of so many records, the first of which begins there: where there is one that is no UTF-8,
    there are more."""
    for _ in range(count):
        parts = _Parts(data, at)
        field = parts.headers
        for _ in range(parts.num_headers):
            name, field = _sized(data, field)
            if name is None:
                raise CorruptRecordException("a header has no name")
            try:
                data[name].decode()
            except UnicodeDecodeError:
                data[name] = bytes(byte if byte < 128 else ord("?") for byte in data[name])
            _, field = _sized(data, field)
        at = _skip(data, at, 1)


def _sized(data: bytearray, at: int) -> tuple[slice | None, int]:
    """Bytes behind their number, which is negative if there are none, and where they end."""
    size, at = _varint(data, at)
    if size < 0:
        return None, at
    if at + size > len(data):
        raise CorruptRecordException(f"a field of {size} bytes has {len(data) - at}")
    return slice(at, at + size), at + size


def _varint(data: bytearray, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    try:
        found: tuple[int, int] = decode_varint(data, at)
    except (IndexError, ValueError) as error:
        raise CorruptRecordException("a number is cut off, or too long") from error
    return found
