"""Batches of records that aiokafka 0.14 reads nothing of, or all too much.

One header whose name is not UTF-8, which librdkafka can write, and nothing of its batch is read: a consumer comes past
it in no way but by leaving out all of it. And a broker bounds a batch as it lies there, compressed, while a consumer
decompresses it whole: a megabyte of gzip may be a gigabyte of zeros, of zstd even thirty.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher
import cramjam
import numpy as np
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

from xgr_stream.config import MAX_BATCH_BYTES
from xgr_stream.stream.records import Unread

_FRAME = 12
"""Bytes of a batch in front of what its length counts."""
_HEAD = 61
"""Bytes of a batch of version 2 in front of its records."""
_VERSION, _ATTRIBUTES = 16, 22
_CODEC = 7
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEAD = 16

_bounded: set[str] = set()
"""Topics whose batches are read within a bound."""


def read_any_batch() -> None:
    """Have all consumers of this process read records with any names of headers, with '?' for each byte of a name that
    is not ASCII."""
    aiokafka.consumer.fetcher.MemoryRecords = Batches
    aiokafka.consumer.fetcher.PartitionRecords = _PartitionRecords


def bound_batches(topics: Iterable[str]) -> None:
    """Have batches of these topics decompressed up to `MAX_BATCH_BYTES` alone. In place of records that are not within
    that, or that can't be read, comes one whose value is `Unread`."""
    _bounded.update(topics)


class _PartitionRecords(aiokafka.consumer.fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(self, tp: Any, records: Any, *others: Any) -> None:
        records.bounded = tp.topic in _bounded
        super().__init__(tp, records, *others)


class Batches:
    """`MemoryRecords`, as aiokafka's fetcher uses them."""

    def __init__(self, data: bytes, bounded: bool = False) -> None:
        self.bounded = bounded
        self._data = data
        self._records = MemoryRecords(data)
        self._at = 0
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        begin = self._at
        self._at += _FRAME + int.from_bytes(self._data[begin + 8 : begin + _FRAME], "big")
        return None if batch is None else _Batch(batch, self._data[begin : self._at], self.bounded)


class _Batch:
    def __init__(self, batch: Any, data: bytes, bounded: bool) -> None:
        self._batch = batch
        self._data = data
        self._bounded = bounded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        last = self._batch.base_offset - 1
        try:
            for record in self._with_any_names():
                last = record.offset
                yield record
        except CorruptRecordException as error:
            if not self._bounded:
                raise
            yield self._unread(last + 1, error)

    def _with_any_names(self) -> Iterator[Any]:
        records: Any = self._batch
        data: bytes | bytearray = self._data
        if self._bounded and data[_VERSION] == 2 and data[_ATTRIBUTES] & _CODEC:
            data = _decompressed(data)
            records = DefaultRecordBatch(data)
        last = -1
        try:
            for record in records:
                last = record.offset
                yield record
        except UnicodeDecodeError:
            yield from (record for record in _readable(data) if record.offset > last)

    def _unread(self, first: int, error: CorruptRecordException) -> Any:
        """The last of the batch's offsets, in place of all from this one on."""
        last = self._batch.next_offset - 1
        why = f"records {first} to {last}, of a batch of {len(self._data)} bytes, can't be read: {error.args[0]}"
        return SimpleNamespace(
            offset=last,
            timestamp=self._batch.max_timestamp,
            timestamp_type=self._batch.timestamp_type,
            checksum=None,
            key=None,
            value=Unread(why.encode()),
            headers=[],
        )


def _decompressed(data: bytes | bytearray) -> bytearray:
    """A batch without its codec. Raises `CorruptRecordException` for one that is not within the bound."""
    found = bytearray(data[:_HEAD])
    found[_ATTRIBUTES] &= ~_CODEC
    try:
        found += _DECOMPRESS[data[_ATTRIBUTES] & _CODEC](memoryview(data)[_HEAD:])
    except (ValueError, zlib.error, cramjam.DecompressionError) as error:
        what = f"they must decompress to at most {MAX_BATCH_BYTES} bytes, and do not ({error})"
        raise CorruptRecordException(what) from error
    return found


def _from_gzip(data: memoryview) -> bytes:
    member = zlib.decompressobj(16 + zlib.MAX_WBITS)
    found = member.decompress(data, MAX_BATCH_BYTES)
    if not member.eof:
        raise ValueError("more is to come")
    return found


def _from_snappy(data: memoryview) -> bytes:
    """One block, or blocks as the JVM's library frames them."""
    if data[: len(_XERIAL)] != _XERIAL:
        return _from_snappy_block(data, MAX_BATCH_BYTES)
    found = bytearray()
    at = _XERIAL_HEAD
    while at < len(data):
        begin = at + 4
        at = begin + int.from_bytes(data[at:begin], "big")
        found += _from_snappy_block(data[begin:at], MAX_BATCH_BYTES - len(found))
    return bytes(found)


def _from_snappy_block(data: memoryview, most: int) -> bytes:
    size = cramjam.snappy.decompress_raw_len(data)
    if size > most:
        raise ValueError(f"a block of {size}")
    return bytes(cramjam.snappy.decompress_raw(data))


def _into_a_bound(decompress_into: Callable[[memoryview, Any], int]) -> Callable[[memoryview], memoryview]:
    def decompress(data: memoryview) -> memoryview:
        found = np.empty(MAX_BATCH_BYTES, np.uint8)  # pages that nothing is written to take no memory
        return found[: decompress_into(data, found)].data

    return decompress


_DECOMPRESS: dict[int, Callable[[memoryview], bytes | memoryview]] = {
    1: _from_gzip,
    2: _from_snappy,
    3: _into_a_bound(cramjam.lz4.decompress_into),
    4: _into_a_bound(cramjam.zstd.decompress_into),
}


def _readable(data: bytes | bytearray) -> Iterator[Any]:
    """A batch's records, by aiokafka's own Python, which reads a record again from where it begins."""
    batch: Any = _DefaultRecordBatchPy(data)
    batch._maybe_uncompress()
    while True:
        try:
            record = next(batch, None)
        except CorruptRecordException as error:
            if not isinstance(error.__cause__, UnicodeDecodeError):
                raise
            _make_ascii(batch._buffer, batch._pos)
            continue
        if record is None:
            return
        yield record


def _make_ascii(buffer: bytearray, at: int) -> None:
    """The names of the headers of the record that begins there."""
    for _ in range(4):  # its length, its attributes, and what its timestamp and its offset are more than the batch's
        _, at = decode_varint(buffer, at)
    for _ in range(2):  # key and value, of a length of -1 if there is none
        length, at = decode_varint(buffer, at)
        at += max(length, 0)
    headers, at = decode_varint(buffer, at)
    for _ in range(headers):
        length, at = decode_varint(buffer, at)
        buffer[at : at + length] = bytes(byte if byte < 128 else ord("?") for byte in buffer[at : at + length])
        at += length
        length, at = decode_varint(buffer, at)
        at += max(length, 0)
