"""Carries out what the processor asks to be written, and tells it when that is durable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidProducerIdMapping, KafkaError, OutOfOrderSequenceNumber, UnknownProducerId

from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import Clock
from xgr_stream.stream.connection import RETRY_AFTER_S, passes
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.processor import Processor

logger = logging.getLogger(__name__)

OUT_OF_STEP = (OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerIdMapping)
"""What a broker answers an idempotent producer whose numbers are not those that it expects."""


class Publisher(ABC):
    """Polls the processor and hands its outputs on in order; how they are written is a subclass's own. All on the event
    loop's thread.

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
        self._tasks: set[asyncio.Task[None]] = set()
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
        while True:
            await self._wake_or_deadline()
            self._awake.clear()
            for output in self._processor.poll():
                self._send(output)

    async def _wake_or_deadline(self) -> None:
        deadline = self._processor.next_deadline()
        left = None if deadline is None else max(0.0, deadline - self._clock.now())
        if self._awake.is_set():
            await asyncio.sleep(0)  # others have their turn, however much there is to do here
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._awake.wait()

    @abstractmethod
    def _send(self, output: Output) -> None:
        """Have it written: `_expect` what is to become durable; once it is, `_forget` it and tell `_durable`."""

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

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A writer ends when it is cancelled; whatever else ends it would leave its records waiting for ever."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
