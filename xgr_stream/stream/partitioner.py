"""Where producers place a key. Ours to know, because user, history and requests must meet on one partition.

aiokafka and Java clients use murmur2, librdkafka's clients (confluent-kafka, kcat, Go, .NET) CRC32 unless they are
given `partitioner=murmur2_random`: equal partition counts do not prove that two topics are co-partitioned.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from xgr_stream.config import Partitioner as PartitionerName
from xgr_stream.errors import Misplaced, TopologyError

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
    return None if name == "any" else by_key(name, num_partitions)


@lru_cache
def by_key(name: Literal["murmur2", "crc32"], num_partitions: int) -> Partitioner:
    @lru_cache(maxsize=CACHED_KEYS)
    def place(key: bytes) -> int:
        hashed = murmur2(key) & 0x7FFFFFFF if name == "murmur2" else zlib.crc32(key)
        return hashed % num_partitions

    return place


class Placement:
    """The rule by which keys must be placed, to hold records against."""

    def __init__(self, name: PartitionerName) -> None:
        self._name = name
        self._num_partitions: int | None = None
        self._place: Callable[[str], int] | None = None

    def set_partitions(self, num_partitions: int) -> None:
        """How many partitions the topics have; it can't change while histories depend on it."""
        if num_partitions == self._num_partitions:
            return
        if self._num_partitions is not None:
            raise TopologyError(
                f"the events topic must keep its {self._num_partitions} partitions, not grow to {num_partitions}: "
                "histories are placed by that number; start a new recommender on new topics and replay the events"
            )
        self._num_partitions = num_partitions
        place = partitioner(self._name, num_partitions)
        if place is not None:
            self._place = lru_cache(maxsize=CACHED_KEYS)(lambda user_id: place(user_id.encode()))

    def partition(self, user_id: str) -> int | None:
        """Where the user belongs; None: anywhere."""
        return None if self._place is None else self._place(user_id)

    def check(self, user_id: str, partition: int) -> None:
        """Raise `Misplaced` for a record of the user that is on another partition than its key says."""
        if self._place is not None and (expected := self._place(user_id)) != partition:
            raise Misplaced(
                f"partition must be {expected}, where {self._name} places this user among {self._num_partitions}, "
                f"not {partition}: give the producer that partitioner (librdkafka: partitioner=murmur2_random), or the "
                "worker the producers' (StreamConfig.partitioner)"
            )
