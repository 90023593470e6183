"""Copies of the histories of other workers' partitions: whoever is given one of them reads only what came after.

A copy is a restore that is not finished: the changelog is fed to it as it grows, and order can't matter to it. The new
owner goes on where the copy has come to, up to a fence of its own, as after a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from xgr_stream.errors import HistoryError
from xgr_stream.history import HistoryStore
from xgr_stream.history.store import USER_BYTES
from xgr_stream.history.user import UserHistory
from xgr_stream.metrics import Metrics
from xgr_stream.stream import changelog
from xgr_stream.stream.connection import RETRY_AFTER_S, Connection, passes, read_plainly, stop_client

logger = logging.getLogger(__name__)

POLL_MS = 500
MAX_RECORDS = 500
"""Records fed at a time, some 10 ms; the event loop is another's in between."""
IDLE_S = 0.5
CHUNK_USERS = 10_000
FULL = 0.9
"""Of the bound: what is fed between two measurements has the rest."""


class Standby:
    """Follows the changelog of all partitions but those that `owned()` names. All on the event loop.

    Beyond `max_bytes`, as the store counts them, whole copies are dropped until the worker's own partitions change.
    """

    def __init__(
        self,
        connection: Connection,
        history: HistoryStore,
        *,
        topic: str,
        num_partitions: int,
        max_bytes: int,
        isolation_level: str,
        owned: Callable[[], frozenset[int]],
        metrics: Metrics,
    ) -> None:
        """`topic`: the changelog."""
        self._connection = connection
        self._history = history
        self._topic = topic
        self._all = frozenset(range(num_partitions))
        self._max_bytes = max_bytes
        self._isolation_level = isolation_level
        self._owned = owned
        self._metrics = metrics
        self._positions: dict[int, int] = {}
        """Of each partition that is followed, the changelog offset to read next."""
        self._sizes: dict[int, int] = {}
        """Bytes when last measured, and at least what was fed since."""
        self._refused: set[int] = set()
        self._owned_then: frozenset[int] = frozenset()

    @property
    def positions(self) -> Mapping[int, int]:
        """The changelog offset to read next of each partition that is followed."""
        return self._positions

    def hand_over(self, number: int) -> int | None:
        """Follow this partition no more. Its copy is what the store is restoring of it, up to the offset returned;
        None: there is none."""
        self._sizes.pop(number, None)
        position = self._positions.pop(number, None)
        self._report()
        return position

    def drop(self, number: int) -> None:
        """Follow this partition no more, and keep nothing of it. It may be followed again, from the start."""
        self.hand_over(number)
        self._history.stop_restoring(number)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._follow()
            except KafkaError as error:
                if not passes(error):
                    raise
                logger.warning("following the changelog for other workers failed (%r); trying again", error)
            await asyncio.sleep(RETRY_AFTER_S)

    async def _follow(self) -> None:
        consumer = self._connection.consumer(auto_offset_reset="none", isolation_level=self._isolation_level)
        try:
            await consumer.start()
            read_plainly(consumer, self._topic)
            read: Set[int] = set()
            while True:
                wanted = self._wanted()
                if not wanted == read == self._positions.keys():  # one may have come and gone meanwhile
                    await self._assign(consumer, wanted)
                    read = set(self._positions)
                if not read:
                    await asyncio.sleep(IDLE_S)
                    continue
                try:
                    self._feed(await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS))
                except OffsetOutOfRangeError as error:
                    self._start_over(error)
                    read = set()
                if sum(self._sizes.values()) > self._max_bytes:
                    await self._make_room()
                await asyncio.sleep(0)
        finally:
            await stop_client(consumer)

    def _wanted(self) -> Set[int]:
        owned = self._owned()
        if owned != self._owned_then:
            self._owned_then = owned
            self._refused.clear()
        return (self._all - owned - self._refused) | self._positions.keys()  # ours until it is handed over

    async def _assign(self, consumer: AIOKafkaConsumer, wanted: Set[int]) -> None:
        new = [TopicPartition(self._topic, number) for number in wanted - self._positions.keys()]
        begin = await consumer.beginning_offsets(new) if new else {}
        for tp in begin:
            if tp.partition not in self._owned():  # it may have become ours meanwhile
                self._history.stop_restoring(tp.partition)
                self._positions[tp.partition], self._sizes[tp.partition] = begin[tp], 0
        self._report()
        consumer.assign([TopicPartition(self._topic, number) for number in self._positions])
        for number, position in self._positions.items():
            consumer.seek(TopicPartition(self._topic, number), position)

    def _feed(self, batches: Mapping[TopicPartition, Sequence[Any]]) -> None:
        for tp, records in batches.items():
            number = tp.partition
            if number not in self._positions:  # handed over while this was fetched
                continue
            try:
                changelog.restore_all(self._history, number, records)
            except HistoryError as error:  # who is given the partition will say so, and stop
                logger.warning("no copy of partition %d is kept: %s", number, error)
                self._refuse(number)
                continue
            self._positions[number] = records[-1].offset + 1
            self._sizes[number] += sum(USER_BYTES + len(record.value or b"") for record in records)

    def _start_over(self, error: OffsetOutOfRangeError) -> None:
        """Records were deleted that a copy had not come to, or the topic was made anew."""
        for tp in error.args[0]:
            logger.warning("the copy of partition %d is made anew: the changelog is not where it was", tp.partition)
            self.drop(tp.partition)

    async def _make_room(self) -> None:
        for number in tuple(self._positions):
            size = await self._size(number)
            if number in self._sizes:
                self._sizes[number] = size
        while self._sizes and sum(self._sizes.values()) > FULL * self._max_bytes:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            logger.warning(
                "standby copies take more than %d bytes: none of partition %d is kept", self._max_bytes, largest
            )
            self._refuse(largest)

    def _refuse(self, number: int) -> None:
        self.drop(number)
        self._refused.add(number)

    async def _size(self, number: int) -> int:
        users = list(self._history.restoring(number).users.values())
        total = USER_BYTES * len(users)
        for start in range(0, len(users), CHUNK_USERS):
            total += sum(
                len(user.buffer) for user in users[start : start + CHUNK_USERS] if isinstance(user, UserHistory)
            )
            await asyncio.sleep(0)
        return total

    def _report(self) -> None:
        self._metrics.standby_partitions.set(len(self._positions))
