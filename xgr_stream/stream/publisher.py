"""Carries out what the processor asks to be written, and tells it when that is durable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidProducerIdMapping, KafkaError, OutOfOrderSequenceNumber, UnknownProducerId

from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import Clock
from xgr_stream.stream.connection import RETRY_AFTER_S, passes
from xgr_stream.stream.copies import MAX_LOOK_UPS, forget_unknown, is_known
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.records import Produce

logger = logging.getLogger(__name__)

COPY_TIMEOUT_S = 5.0
"""How long a response's copy may take: a `reply_to` topic that does not exist would take for ever."""
MAX_COPIES = 1_000
"""Copies under way; further ones are given up at once."""


OUT_OF_STEP = (OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerIdMapping)
"""What a broker answers an idempotent producer whose numbers are not those that it expects."""

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


class Publisher:
    """Polls the processor and sends its outputs in order. All on the event loop's thread.

    A topic partition's records go out as batches, one after the other: the changelog must not hold a user's next event
    without the one before, so what fails is tried again before anything behind it. Partitions don't wait for each
    other, and polling waits for none. To hand records to the producer one by one took four times as long.

    `on_progress(topic, partition)` is called when a record's outputs became durable, `on_failure(error)` when the
    broker refuses a record for good: the worker must stop then, its offset is never committed.
    """

    def __init__(
        self,
        processor: Processor,
        producer: AIOKafkaProducer,
        *,
        new_producer: Callable[[], Awaitable[AIOKafkaProducer]],
        clock: Clock,
        metrics: Metrics,
        on_progress: Callable[[str, int], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._processor = processor
        self._producer = producer
        self._new_producer = new_producer
        self._renewing = asyncio.Lock()
        self._clock = clock
        self._metrics = metrics
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._awake = asyncio.Event()
        self._waiting: dict[Output, int] = {}
        """Records of each output that are not durable yet."""
        self._unpublished: Counter[str | None] = Counter()
        self.unpublished_bytes = 0
        """Of outputs that are to be written and not durable yet."""
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._copies = 0
        self._looked_up: Counter[str] = Counter()
        """Topics of copies under way of which nothing was known."""
        loop, own_thread = asyncio.get_running_loop(), threading.get_ident()

        def wake() -> None:
            if threading.get_ident() == own_thread:
                self._awake.set()
            else:
                loop.call_soon_threadsafe(self._awake.set)

        processor.on_wake(wake)

    @property
    def idle(self) -> bool:
        """Whether everything that was ready to be written is durable."""
        return not (self._awake.is_set() or self._waiting)

    def unpublished(self, topic: str) -> int:
        """Records of this topic whose outputs are to be written and not durable yet."""
        return self._unpublished[topic]

    def wake(self) -> None:
        """Poll the processor now."""
        self._awake.set()

    async def run(self) -> None:
        """Until cancelled. Raises what the processor raises."""
        try:
            while True:
                await self._wake_or_deadline()
                self._awake.clear()
                for output in self._processor.poll():
                    self._send(output)
        finally:
            for task in self._tasks:
                task.cancel()

    async def _wake_or_deadline(self) -> None:
        deadline = self._processor.next_deadline()
        left = None if deadline is None else max(0.0, deadline - self._clock.now())
        if self._awake.is_set():
            await asyncio.sleep(0)  # others have their turn, however much there is to do here
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._awake.wait()

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

    async def write(self, topic: str, value: bytes, key: bytes, *, partition: int) -> Any:
        """Write a record that is no output of the processor's, durably; where it was written. Raises `KafkaError`."""
        while True:
            producer = self._producer
            try:
                return await producer.send_and_wait(topic, value, key, partition=partition)
            except OUT_OF_STEP:
                await self.renew(producer)
            if self._producer is producer:
                await asyncio.sleep(RETRY_AFTER_S)

    async def renew(self, spoilt: AIOKafkaProducer) -> None:
        """Write with another producer from now on. An idempotent one that gave up a batch which the broker took, or the
        other way round, is out of step with it for good: each further batch of that partition is refused."""
        async with self._renewing:
            if self._producer is not spoilt:
                return
            logger.warning("the producer is out of step with the broker; a new one takes its place")
            try:
                self._producer = await self._new_producer()
            except KafkaError as error:
                if not passes(error):
                    raise
                logger.warning("no new producer yet (%s)", error)

    def _expect(self, output: Output, required: int) -> None:
        """So many records of it are to become durable."""
        self._waiting[output] = required
        self._unpublished[output.topic] += len(output.offsets)
        self.unpublished_bytes += output.num_bytes

    def _forget(self, output: Output) -> None:
        if self._waiting.pop(output, None) is not None:
            self._unpublished[output.topic] -= len(output.offsets)
            self.unpublished_bytes -= output.num_bytes

    def _durable(self, outputs: Iterable[Output]) -> None:
        progress = set()
        for output in outputs:
            self._processor.acknowledged(output)
            if output.topic is not None:
                progress.add((output.topic, output.partition.number))
        for topic, partition in progress:
            self._on_progress(topic, partition)

    def _send_copy(self, produce: Produce) -> None:
        topic, looked_up = produce.topic, self._looked_up
        unknown = topic in looked_up or not is_known(self._producer.client, topic)
        if self._copies >= MAX_COPIES or (unknown and topic not in looked_up and len(looked_up) >= MAX_LOOK_UPS):
            self._metrics.reply_copies_failed.inc()
        else:
            self._copies += 1
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
            self._copies -= 1
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

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A writer ends when it is cancelled; whatever else ends it would leave its records waiting for ever."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
