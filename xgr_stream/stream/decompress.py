"""What a producer has compressed, within a bound.

A broker bounds a batch of records as it lies there, and a consumer decompresses it whole: a megabyte of gzip may be a
gigabyte of zeros, of zstd thirty.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import cramjam
import numpy as np
from aiokafka.errors import CorruptRecordException

from xgr_stream.config import MAX_BATCH_BYTES
from xgr_stream.errors import MessageTooLarge

_GZIP = b"\x1f\x8b"
_GZIP_PIECE = 1 << 14
"""Of a member nobody knows where it ends: what is given with it from behind that is copied."""
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEAD = 16
_NO_ROOM = "failed to write whole buffer"
"""What cramjam says when there is more than fits."""


def decompressed(codec: int, data: memoryview) -> bytes | bytearray | memoryview:
    """By Kafka's number of the codec. Raises `MessageTooLarge` for more than `MAX_BATCH_BYTES`, and
    `CorruptRecordException` for what the codec did not write."""
    if codec not in _DECOMPRESS:
        raise CorruptRecordException(f"no codec has the number {codec}")
    try:
        return _DECOMPRESS[codec](data)
    except (zlib.error, cramjam.DecompressionError) as error:
        if _NO_ROOM in str(error):
            raise _too_large() from error
        raise CorruptRecordException(str(error)) from error


def _too_large() -> MessageTooLarge:
    return MessageTooLarge(f"a batch must decompress to at most {MAX_BATCH_BYTES} bytes, and it holds more")


def _from_gzip(data: memoryview) -> bytearray:
    """One member, or several."""
    found = bytearray()
    at = 0
    while data[at : at + 2] == _GZIP:
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not member.eof:
            piece = data[at : at + _GZIP_PIECE]
            if not piece:
                raise CorruptRecordException("gzip: it is cut off")
            found += member.decompress(piece, MAX_BATCH_BYTES + 1 - len(found))
            if len(found) > MAX_BATCH_BYTES:
                raise _too_large()
            at += len(piece) - len(member.unused_data)
    if not at:
        raise CorruptRecordException("gzip: it begins otherwise")
    return found


def _from_snappy(data: memoryview) -> bytes | bytearray:
    """One block, or blocks as the JVM's library frames them."""
    if data[: len(_XERIAL)] != _XERIAL:
        return _from_snappy_block(data, MAX_BATCH_BYTES)
    found = bytearray()
    at = _XERIAL_HEAD
    while at < len(data):
        begin = at + 4
        at = begin + int.from_bytes(data[at:begin], "big")
        found += _from_snappy_block(data[begin:at], MAX_BATCH_BYTES - len(found))
    return found


def _from_snappy_block(data: memoryview, most: int) -> bytes:
    if cramjam.snappy.decompress_raw_len(data) > most:
        raise _too_large()
    return bytes(cramjam.snappy.decompress_raw(data))


def _into_a_bound(decompress_into: Callable[[memoryview, Any], int]) -> Callable[[memoryview], memoryview]:
    def decompress(data: memoryview) -> memoryview:
        found = np.empty(MAX_BATCH_BYTES, np.uint8)  # pages that nothing is written to take no memory
        return found[: decompress_into(data, found)].data

    return decompress


_DECOMPRESS: dict[int, Callable[[memoryview], bytes | bytearray | memoryview]] = {
    1: _from_gzip,
    2: _from_snappy,
    3: _into_a_bound(cramjam.lz4.decompress_into),
    4: _into_a_bound(cramjam.zstd.decompress_into),
}
