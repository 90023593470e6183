"""Where producers place a key. Ours to know, because user, history and requests must meet on one partition.

aiokafka and Java clients use murmur2, librdkafka's clients (confluent-kafka, kcat, Go, .NET) CRC32 unless they are
given `partitioner=murmur2_random`: equal partition counts do not prove that two topics are co-partitioned.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache

from xgr_stream.config import Partitioner as PartitionerName

Partitioner = Callable[[bytes], int]

CACHED_KEYS = 1 << 16
"""Murmur2 takes 3 µs for a short key in Python; active users come again and again."""

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Kafka's 32-bit murmur2 (`org.apache.kafka.common.utils.Utils.murmur2`), unsigned."""
    length = len(key)
    h = 0x9747B28C ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if length > whole:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partitioner(name: PartitionerName, num_partitions: int) -> Partitioner | None:
    """Key → partition for a topic of `num_partitions`; None when placement is the operator's affair (`any`)."""
    if name == "any":
        return None

    @lru_cache(maxsize=CACHED_KEYS)
    def place(key: bytes) -> int:
        hashed = murmur2(key) & 0x7FFFFFFF if name == "murmur2" else zlib.crc32(key)
        return hashed % num_partitions

    return place
