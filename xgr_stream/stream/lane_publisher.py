"""A publisher that writes each topic partition's records in their order, for drivers without transactions."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Coroutine, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from aiokafka.errors import KafkaError

from xgr_stream.stream.connection import RETRY_AFTER_S, passes
from xgr_stream.stream.copies import MAX_LOOK_UPS, forget_unknown, is_known
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.publisher import OUT_OF_STEP, Publisher
from xgr_stream.stream.records import Produce

logger = logging.getLogger(__name__)

COPY_TIMEOUT_S = 5.0
"""How long a response's copy may take: a `reply_to` topic that does not exist would take for ever."""
MAX_COPIES = 1_000
"""Copies under way; further ones are given up at once."""

_PLACE = itemgetter(*map(Produce._fields.index, ("topic", "partition", "required")))


class Write(NamedTuple):
    """Required records of one output on their way, all of one topic partition."""

    output: Output
    produces: Sequence[Produce]


class Lane:
    """The writes of one topic partition, in their order; one batch of them is under way at a time."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.writes: deque[Write] = deque()
        self.filled = asyncio.Event()


class LanePublisher(Publisher):
    """Sends outputs as batches of one topic partition, one after the other: the changelog must not hold a user's next
    event without the one before, so what fails is tried again before anything behind it. Partitions don't wait for each
    other, and polling waits for none. To hand records to the producer one by one took four times as long.
    """

    def __init__(self, **options: Any) -> None:
        """`options`: a `Publisher`'s."""
        super().__init__(**options)
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._num_copies = 0
        self._looked_up: Counter[str] = Counter()
        """Topics of copies under way of which nothing was known."""

    async def run(self) -> None:
        """`Publisher.run`; what is not written when it ends is not written any more."""
        try:
            await super().run()
        finally:
            for task in self._tasks:
                task.cancel()

    def _send(self, output: Output) -> None:
        required = 0
        for (topic, partition, needed), produces in groupby(output.produces, _PLACE):
            if not needed:
                for produce in produces:
                    self._send_copy(produce)
                continue
            write = Write(output, list(produces))
            required += len(write.produces)
            if partition is None:
                for produce in write.produces:
                    self._spawn(self._send_alone(Write(output, [produce])))
            else:
                lane = self._lane(topic, partition)
                lane.writes.append(write)
                lane.filled.set()
        if required:
            self._expect(output, required)
        else:
            self._durable([output])

    def _lane(self, topic: str, partition: int) -> Lane:
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = Lane(topic, partition)
            self._spawn(self._work(lane))
        return lane

    async def _work(self, lane: Lane) -> None:
        """Write what comes to a topic partition, until cancelled."""
        while True:
            await lane.filled.wait()
            lane.filled.clear()
            while lane.writes:
                batch, writes = self._filled(lane)
                if writes and not await self._try(lane.topic, writes, self._send_batch(batch, lane)):
                    lane.writes.extendleft(reversed(writes))
                    await asyncio.sleep(RETRY_AFTER_S)

    def _filled(self, lane: Lane) -> tuple[Any, list[Write]]:
        """The next batch, and what it holds. What belongs to a partition that is no longer ours is dropped."""
        batch = self._producer.create_batch()
        writes: list[Write] = []
        append = batch.append
        while lane.writes:
            write = lane.writes.popleft()
            output, produces = write
            if not output.partition.held:
                self._forget(output)
                continue
            fit = 0
            for produce in produces:
                if append(timestamp=None, key=produce[2], value=produce[3], headers=list(produce[4])) is None:
                    break
                fit += 1
            if fit == len(produces):
                writes.append(write)
                continue
            if fit:
                writes.append(Write(output, produces[:fit]))
            lane.writes.appendleft(Write(output, produces[fit:]))
            break
        batch.close()
        return batch, writes

    async def _send_batch(self, batch: Any, lane: Lane) -> asyncio.Future[object]:
        future: asyncio.Future[object] = await self._producer.send_batch(batch, lane.topic, partition=lane.partition)
        return future

    async def _send_alone(self, write: Write) -> None:
        """Write a record whose partition is the producer's to choose: no order binds it."""
        while write.output.partition.held:
            if await self._try(write.produces[0].topic, [write], self._enqueue(write.produces[0])):
                return
            await asyncio.sleep(RETRY_AFTER_S)
        self._forget(write.output)

    async def _try(
        self, topic: str, writes: Sequence[Write], sending: Coroutine[Any, Any, asyncio.Future[object]]
    ) -> bool:
        """Whether these need not be tried again: they are durable, or the worker stops."""
        producer = self._producer
        try:
            future = await sending
            await asyncio.wait([future])
            if future.cancelled():  # the producer was stopped: nobody knows whether it was written
                return True
            future.result()
        except OUT_OF_STEP:
            await self.renew(producer)
            return False
        except KafkaError as error:
            if passes(error):
                count = sum(len(write.produces) for write in writes)
                logger.warning("writing %d records to %s failed (%s); trying again", count, topic, error)
                return False
            logger.error("the broker refused a record of %s: %s", topic, error)
            self._on_failure(error)
            return True
        done = []
        for output, produces in writes:
            left = self._waiting.get(output)
            if left == len(produces):
                self._forget(output)
                done.append(output)
            elif left is not None:  # else another of its records was given up with the partition
                self._waiting[output] = left - len(produces)
        self._durable(done)
        return True

    def _send_copy(self, produce: Produce) -> None:
        topic, looked_up = produce.topic, self._looked_up
        unknown = topic in looked_up or not is_known(self._producer.client, topic)
        if self._num_copies >= MAX_COPIES or (unknown and topic not in looked_up and len(looked_up) >= MAX_LOOK_UPS):
            self._metrics.reply_copies_failed.inc()
        else:
            self._num_copies += 1
            if unknown:
                looked_up[topic] += 1
            self._spawn(self._copy(produce, unknown))

    async def _copy(self, produce: Produce, unknown: bool) -> None:
        """`unknown`: nothing was known of its topic."""
        producer = self._producer
        try:
            async with asyncio.timeout(COPY_TIMEOUT_S):
                await (await self._enqueue(produce))
        except (KafkaError, TimeoutError) as error:
            self._metrics.reply_copies_failed.inc()
            logger.debug("a copy of a response did not reach %s: %s", produce.topic, error)
            forget_unknown(producer.client, produce.topic)
            if isinstance(error, OUT_OF_STEP):
                await self.renew(producer)
        finally:
            self._num_copies -= 1
            if unknown:
                self._looked_up[produce.topic] -= 1
                self._looked_up += Counter()  # those without any go

    async def _enqueue(self, produce: Produce) -> asyncio.Future[object]:
        future: asyncio.Future[object] = await self._producer.send(
            produce.topic,
            produce.value,
            produce.key,
            partition=produce.partition,
            headers=list(produce.headers),
        )
        return future
