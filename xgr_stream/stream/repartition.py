"""Further topics and channels of the application, converted into the one ordered events topic, keyed by user."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import faust
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from faust.types import ChannelT, TopicT

from xgr_stream.config import StreamConfig
from xgr_stream.errors import InvalidEvent, InvalidInput
from xgr_stream.history import SourcePosition
from xgr_stream.metrics import Metrics
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.connection import RETRY_AFTER_S, passes
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.faust_topic import Event, Supervisor, headers_of, in_batches, raw_topic
from xgr_stream.stream.partitioner import by_key
from xgr_stream.stream.publisher import OUT_OF_STEP
from xgr_stream.stream.records import Record, Unread, key_passed_on, passed_on
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.source_header import SOURCE_HEADER, source_header
from xgr_stream.types import UserEvent

logger = logging.getLogger(__name__)

ToEvent = Callable[[Any], UserEvent | None]


class Copy(NamedTuple):
    """Of an event, as a record of the events topic."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Repartition:
    """One agent per source. An event is acknowledged when its copy in the events topic is durable, in offset order: at
    least once, since a copy that was written before a crash and not acknowledged yet is written again. That it counts
    once rests on the position in its header, and on the order of the copies (`Ingest`): those of one partition of a
    source are written one call of `_forward` after the other."""

    def __init__(
        self,
        app: faust.App,
        driver: FaustDriver,
        config: StreamConfig,
        metrics: Metrics,
        sources: list[tuple[ChannelT[Any], ToEvent]],
    ) -> None:
        self._app = app
        self._driver = driver
        self._config = config
        self._metrics = metrics
        self.agents = [self._agent(source, to_event, number) for number, (source, to_event) in enumerate(sources)]

    def _agent(self, source: ChannelT[Any], to_event: ToEvent, number: int) -> Any:
        async def forward(events: list[Event]) -> None:
            try:
                await self._forward(events, to_event, is_topic)
            except Exception as error:  # noqa: BLE001  Faust would go on with what is behind these
                await self._stop(error)

        async def convert(stream: Any) -> None:
            await in_batches(stream, forward)

        is_topic = isinstance(source, TopicT)
        channel = raw_topic(self._app, source.get_topic_name()) if is_topic else source
        if isinstance(source, TopicT):
            self._driver.read_too(source)
        name = f"xgr-repartition-{self._config.topics.events}-{number}"
        return self._app.agent(channel, name=name, isolated_partitions=is_topic, supervisor_strategy=Supervisor)(
            convert
        )

    async def _forward(self, events: list[Event], to_event: ToEvent, is_topic: bool) -> None:
        """Write what becomes of these events, then acknowledge them. Tries again for as long as it may help."""
        if is_topic:
            self._driver.came(events[0].message)
        while (runtime := self._driver.runtime) is None or not runtime.started:  # noqa: ASYNC110  it knows of no event
            await asyncio.sleep(RETRY_AFTER_S)
        name = self._config.partitioner
        place = by_key("murmur2" if name == "any" else name, runtime.num_partitions)
        writes: list[Coroutine[Any, Any, None]] = []
        copies: defaultdict[int, list[Copy]] = defaultdict(list)
        for event in events:
            try:
                copy = self._copy(event, to_event, is_topic)
            except InvalidInput as error:
                writes.append(self._write_letter(runtime, _record(event.message), error))
            else:
                if copy is not None:
                    copies[place(copy.key)].append(copy)
        writes += [self._write(runtime, partition, together) for partition, together in copies.items()]
        await asyncio.gather(*writes)
        for event in events:
            event.ack()
            self._driver.acknowledged(event.message)

    async def _stop(self, error: Exception) -> None:
        """End the worker. Until then nothing more is written here: its copies would make those that are missing pass
        for written."""
        logger.exception("repartitioning failed")
        if self._driver.runtime is not None:
            self._driver.runtime.fail(error)
        await asyncio.Event().wait()

    async def _write(self, runtime: Runtime, partition: int, copies: list[Copy]) -> None:
        """Write events of one partition in their order, a batch at a time: what fails is written again before anything
        behind it, and what is durable is not."""
        topic = self._config.topics.events
        while copies:
            producer = runtime.producer
            batch = producer.create_batch()
            fit = 0
            for copy in copies:
                if batch.append(timestamp=None, key=copy.key, value=copy.value, headers=copy.headers) is None:
                    break
                fit += 1
            batch.close()
            if await _durable(runtime, producer, producer.send_batch(batch, topic, partition=partition), fit):
                copies = copies[fit:]

    async def _write_letter(self, runtime: Runtime, record: Record, refused: InvalidInput) -> None:
        self._metrics.dead_letters.labels(refused.code).inc()
        topic, key = self._config.topics.dead_letters, key_passed_on(record.key)
        headers = list(passed_on(record.headers))
        letter = codec.encode(protocol.dead_letter_message(record, refused), self._config.codec)
        written = False
        while not written:
            producer = runtime.producer
            sending = producer.send(topic, letter, key, headers=headers)
            written = await _durable(runtime, producer, sending, 1)

    def _copy(self, event: Event, to_event: ToEvent, is_topic: bool) -> Copy | None:
        """None for a record that is no event. Raises `InvalidInput` for one that can't be converted. What comes from a
        channel has no position."""
        message = event.message
        if isinstance(event.value, Unread):
            raise event.value.error
        headers = [header for header in passed_on(headers_of(message)) if header[0] != SOURCE_HEADER]
        if is_topic:
            headers.append(source_header(SourcePosition(message.topic, message.partition, message.offset)))
        try:
            converted = protocol.returned_event(to_event(event.value))
            if converted is None:
                return None
            value = codec.encode(protocol.event_message(converted), self._config.codec)
            return Copy(converted.user_id.encode(), value, headers)
        except (InvalidInput, MemoryError):  # for want of memory no event is put aside: it is sound
            raise
        except Exception as error:  # the application's function may raise or return anything
            raise InvalidEvent(f"the record can't be converted to an event: {type(error).__name__}") from error


async def _durable(
    runtime: Runtime, producer: AIOKafkaProducer, sending: Coroutine[Any, Any, Awaitable[object]], count: int
) -> bool:
    """Whether these records are; if not, a while later, for them to be written again. Raises what the broker refuses
    them for, if it always will."""
    try:
        await (await sending)
    except KafkaError as error:
        if not (passes(error) or isinstance(error, OUT_OF_STEP)):
            raise
        logger.warning("repartitioning %d events failed (%s); trying again", count, error)
        if isinstance(error, OUT_OF_STEP):
            await runtime.renew_producer(producer)
        await asyncio.sleep(RETRY_AFTER_S)
        return False
    return True


def _bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _record(message: Any) -> Record:
    """What a dead letter tells of a message; a channel's has no bytes."""
    return Record(
        message.topic,
        message.partition,
        message.offset,
        _bytes(message.key),
        _bytes(message.value),
        round((message.timestamp or time.time()) * 1000),
        headers_of(message),
    )
