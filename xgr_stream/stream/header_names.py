"""Records with a header whose name is not UTF-8, which librdkafka can write: aiokafka 0.14 reads nothing of their
batch, and a consumer comes past it in no way but by leaving out all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiokafka.consumer.fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

_FRAME = 12
"""Bytes of a batch in front of what its length counts."""


def read_any_header_names() -> None:
    """Have all consumers of this process read such records, with '?' for each byte of the name that is not ASCII."""
    aiokafka.consumer.fetcher.MemoryRecords = AnyNames


class AnyNames:
    """`MemoryRecords`, as aiokafka's fetcher uses them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._records = MemoryRecords(data)
        self._at = 0
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        begin = self._at
        self._at += _FRAME + int.from_bytes(self._data[begin + 8 : begin + _FRAME], "big")
        return None if batch is None else _Batch(batch, self._data[begin : self._at])


class _Batch:
    def __init__(self, batch: Any, data: bytes) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        last = -1
        try:
            for record in self._batch:
                last = record.offset
                yield record
        except UnicodeDecodeError:
            yield from (record for record in _readable(self._data) if record.offset > last)


def _readable(data: bytes) -> Iterator[Any]:
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
