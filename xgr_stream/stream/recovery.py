"""Reads back what earlier workers left of a partition: its history, and their recent answers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from xgr_stream.collector import collector_resting
from xgr_stream.config import StreamConfig
from xgr_stream.errors import HistoryError
from xgr_stream.scheduler.clock import Clock
from xgr_stream.stream import changelog
from xgr_stream.stream.connection import RETRY_AFTER_S, Connection, passes, read_plainly, record_of, stop_client
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.snapshots import Snapshots
from xgr_stream.stream.standby import Standby

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 8
"""Partitions read at the same time, each by a reader of its own."""
POLL_MS = 500
MAX_RECORDS = 2_000
"""Changelog records fed at a time, some 10 ms; the event loop is another's in between."""
MAX_ANSWERS = 500
"""Answers read back at a time."""


_making = 0


@contextlib.contextmanager
def making_histories() -> Iterator[None]:
    """No cyclic garbage collection while histories are made: it would look at each of them again and again, for a third
    of the whole time, and find nothing. What was made is then put out of its sight for good (`gc.freeze`), or later
    collections would stop the loop for as long. Not so what is garbage by then, the broker's reader above all: one
    collection of what is new, 0.3 µs a user, comes before. An application that has switched the collector off is left
    alone."""
    global _making
    with collector_resting() as ours:
        _making += 1
        try:
            yield
        finally:
            _making -= 1
            if ours and not _making:
                gc.collect(1)
                gc.freeze()


class Recovery:
    """Restores partitions of a processor, with a reader of its own beside the worker's consumer.

    The changelog is read up to a fence record that is written first: right on every broker, and behind whatever an
    earlier owner had written by then. What a frozen one writes later repeats what is there.
    """

    def __init__(
        self,
        connection: Connection,
        write: Callable[..., Awaitable[Any]],
        processor: Processor,
        config: StreamConfig,
        *,
        group_id: str,
        clock: Clock,
        snapshots: Snapshots | None = None,
        standby: Standby | None = None,
    ) -> None:
        """`write`: `Publisher.write`."""
        self._connection = connection
        self._write_record = write
        self._processor = processor
        self._topics = config.topics
        self._dedup_window_ms = config.dedup_window_ms
        self._group_id = group_id
        self._clock = clock
        self._snapshots = snapshots
        self._standby = standby
        self._isolation_level = config.isolation_level
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._settling = asyncio.Lock()
        """One partition at a time: until it is done both its records and its histories are in memory."""

    async def run(self, number: int) -> None:
        """Restore one partition, in as many attempts as the brokers make necessary. May be cancelled.

        Raises `HistoryError` when the changelog does not add up: the partition must not be served.
        """
        copied = None if self._standby is None else self._standby.hand_over(number)
        while True:
            try:
                async with self._slots:
                    with making_histories():
                        await self._attempt(number, copied)
                return
            except KafkaError as error:
                if not passes(error):
                    raise
                logger.warning("restoring partition %d failed (%r); trying again", number, error)
                self._processor.restart_restore(number)
                copied = None
            await asyncio.sleep(RETRY_AFTER_S)

    async def _attempt(self, number: int, copied: int | None) -> None:
        # The group is named to read its committed offset; without a subscription this reader does not join it.
        consumer = self._connection.consumer(
            group_id=self._group_id, auto_offset_reset="earliest", isolation_level=self._isolation_level
        )
        try:
            await consumer.start()
            read_plainly(consumer, self._topics.changelog)
            await self._restore_answers(consumer, TopicPartition(self._topics.responses, number))
            if copied is None or not await self._go_on(consumer, number, copied):
                await self._restore_history(consumer, number)
        finally:
            await stop_client(consumer)

    async def _go_on(self, consumer: AIOKafkaConsumer, number: int, copied: int) -> bool:
        """From the standby copy of the partition, which has come to `copied`. False: what comes after does not fit."""
        if self._snapshots is not None:
            await self._snapshots.set_anchor(number)
        try:
            await self._read_history(consumer, number, copied)
        except HistoryError as error:
            logger.warning("the standby copy of partition %d is not used: %s", number, error)
            self._processor.restart_restore(number)
            return False
        logger.info("partition %d goes on from its standby copy, at %d of the changelog", number, copied)
        return True

    async def _restore_history(self, consumer: AIOKafkaConsumer, number: int) -> None:
        """From a snapshot if there is one; if what comes after it does not add up, from the whole changelog."""
        if self._snapshots is not None:
            start = await self._snapshots.restore(consumer, number)
            if start is not None:
                try:
                    await self._read_history(consumer, number, start)
                    return
                except HistoryError as error:
                    await self._snapshots.give_up(number, error)
        await self._read_history(consumer, number, None)

    async def _read_history(self, consumer: AIOKafkaConsumer, number: int, start: int | None) -> None:
        """The changelog from an offset on, or all of it."""
        log = TopicPartition(self._topics.changelog, number)
        events = TopicPartition(self._topics.events, number)
        fence = await self._write_fence(number)
        begin, end = [(await of([events]))[events] for of in (consumer.beginning_offsets, consumer.end_offsets)]
        consumer.assign([log, events])
        if start is None:
            await consumer.seek_to_beginning(log)
        else:
            consumer.seek(log, start)
        # The last event tells the end on brokers, too, that count a batch of several records as one.
        consumer.seek(events, max(end - 1, 0))
        fenced, looked = False, begin >= end
        while not (fenced and looked):
            batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS)
            if last := batches.get(events):
                end = last[-1].offset + 1
                consumer.pause(events)
            records = batches.get(log, [])
            self._processor.restore(number, records)
            fenced = fenced or fence.value in [record.value for record in records]
            if self._processor.must_settle(number):
                await self._settle(number)
            # Not a record but a marker may stand there, or it may have expired: the reader is behind it then, too.
            looked = looked or bool(last) or await consumer.position(events) >= end
        await self._settle(number)
        self._processor.restored(number, position=await consumer.committed(events), end=end)

    async def _settle(self, number: int) -> None:
        async with self._settling:
            for _ in self._processor.settle(number):
                await asyncio.sleep(0)

    async def _write_fence(self, number: int) -> changelog.Entry:
        fence = changelog.fence(uuid.uuid4().bytes)
        await self._write_record(self._topics.changelog, fence.value, fence.key, partition=number)
        return fence

    async def _restore_answers(self, consumer: AIOKafkaConsumer, responses: TopicPartition) -> None:
        """The answers of the last `dedup_window_ms`, so that a request delivered again is not computed again."""
        since = (await consumer.offsets_for_times({responses: self._clock.wall_ms() - self._dedup_window_ms}))[
            responses
        ]
        end = (await consumer.end_offsets([responses]))[responses]
        if since is None:
            return
        consumer.assign([responses])
        consumer.seek(responses, since.offset)
        while await consumer.position(responses) < end:
            batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_ANSWERS)
            self._processor.restore_answers(responses.partition, map(record_of, batches.get(responses, [])))
