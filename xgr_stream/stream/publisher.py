"""Carries out what the processor asks to be written, and tells it when that is durable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import Clock
from xgr_stream.stream.connection import RETRY_AFTER_S, passes
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.records import Produce

logger = logging.getLogger(__name__)

COPY_TIMEOUT_S = 5.0
"""How long a response's copy may take: a `reply_to` topic that does not exist would take for ever."""
MAX_COPIES = 1_000
"""Copies under way; further ones are given up at once."""


class Write(NamedTuple):
    """One required record on its way. `number` is its place in the order of all writes."""

    number: int
    output: Output
    produce: Produce

    @property
    def place(self) -> tuple[str, int | None]:
        return self.produce.topic, self.produce.partition


class Late:
    """The writes of a topic partition that wait since one of them failed: a heap, the earliest on top."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.failed = True
        """Whether the earliest must be known to be durable before any other follows."""


class Publisher:
    """Polls the processor and sends its outputs in order. All on the event loop's thread.

    A record that can't be written for now holds back the later ones of its topic partition until it is durable: the
    changelog must not hold a user's next event without the one before. Only those that the producer had already may
    overtake it, and an idempotent producer does not fail a record that it has taken before it has tried for good.

    `on_progress(topic, partition)` is called when a record's outputs became durable, `on_failure(error)` when the
    broker refuses a record for good: the worker must stop then, its offset is never committed.
    """

    def __init__(
        self,
        processor: Processor,
        producer: AIOKafkaProducer,
        *,
        clock: Clock,
        metrics: Metrics,
        on_progress: Callable[[str, int], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._processor = processor
        self._producer = producer
        self._clock = clock
        self._metrics = metrics
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._awake = asyncio.Event()
        self._sending = False
        self._waiting: dict[Output, int] = {}
        self._late: dict[tuple[str, int | None], Late] = {}
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._copies = 0
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._awake.set)

        processor.on_wake(wake)

    @property
    def idle(self) -> bool:
        """Whether everything that was ready to be written is durable."""
        return not (self._awake.is_set() or self._sending or self._waiting)

    def wake(self) -> None:
        """Poll the processor now."""
        self._awake.set()

    async def run(self) -> None:
        """Until cancelled. Raises what the processor raises."""
        try:
            while True:
                await self._wake_or_deadline()
                self._awake.clear()
                self._sending = True
                for output in self._processor.poll():
                    await self._send(output)
                self._sending = False
        finally:
            for task in self._tasks:
                task.cancel()

    async def _wake_or_deadline(self) -> None:
        deadline = self._processor.next_deadline()
        left = None if deadline is None else max(0.0, deadline - self._clock.now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._awake.wait()

    async def _send(self, output: Output) -> None:
        required = []
        for produce in output.produces:
            if produce.required:
                required.append(produce)
            else:
                self._send_copy(produce)
        if not required:
            self._durable(output)
            return
        self._waiting[output] = len(required)
        for produce in required:
            write = Write(next(self._numbers), output, produce)
            if (late := self._late.get(write.place)) is not None:
                heappush(late.writes, write)
            else:
                await self._write(write)

    async def _write(self, write: Write) -> asyncio.Future[object] | None:
        """Hand a record to the producer. None: it would not take it, or the record's partition is no longer ours."""
        if not write.output.partition.held:
            self._waiting.pop(write.output, None)
            return None
        try:
            future = await self._enqueue(write.produce)
        except KafkaError as error:
            self._retry_or_fail(write, error)
            return None
        future.add_done_callback(partial(self._on_sent, write))
        return future

    def _on_sent(self, write: Write, future: asyncio.Future[object]) -> None:
        if future.cancelled():  # the producer was stopped: nobody knows whether it was written
            return
        error = future.exception()
        if error is not None:
            self._retry_or_fail(write, error)
            return
        output = write.output
        if output not in self._waiting:  # another of its records was given up with the partition
            return
        self._waiting[output] -= 1
        if not self._waiting[output]:
            del self._waiting[output]
            self._durable(output)

    def _durable(self, output: Output) -> None:
        self._processor.acknowledged(output)
        if output.topic is not None:
            self._on_progress(output.topic, output.partition.number)

    def _retry_or_fail(self, write: Write, error: BaseException) -> None:
        topic, _ = write.place
        if not passes(error):
            logger.error("the broker refused a record of %s: %s", topic, error)
            self._on_failure(error)
            return
        logger.warning("writing to %s failed (%s); trying again", topic, error)
        late = self._late.get(write.place)
        if late is None:
            late = self._late[write.place] = Late()
            self._spawn(self._catch_up(write.place, late))
        late.failed = True
        heappush(late.writes, write)

    async def _catch_up(self, place: tuple[str, int | None], late: Late) -> None:
        """Write what is late in its order: one that failed alone, until it is durable, then the others behind it."""
        while late.writes:
            if not late.failed:
                await self._write(heappop(late.writes))
                continue
            await asyncio.sleep(RETRY_AFTER_S)
            late.failed = False
            future = await self._write(heappop(late.writes))
            if future is not None:
                await asyncio.wait([future])
        del self._late[place]

    def _send_copy(self, produce: Produce) -> None:
        if self._copies >= MAX_COPIES:
            self._metrics.reply_copies_failed.inc()
        else:
            self._copies += 1
            self._spawn(self._copy(produce))

    async def _copy(self, produce: Produce) -> None:
        try:
            async with asyncio.timeout(COPY_TIMEOUT_S):
                await (await self._enqueue(produce))
        except (KafkaError, TimeoutError) as error:
            self._metrics.reply_copies_failed.inc()
            logger.debug("a copy of a response did not reach %s: %s", produce.topic, error)
        finally:
            self._copies -= 1

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
        task.add_done_callback(self._tasks.discard)
