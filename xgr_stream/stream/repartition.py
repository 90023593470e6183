"""Further topics and channels of the application, converted into the one ordered events topic, keyed by user."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import faust
from aiokafka.errors import KafkaError
from faust.types import ChannelT, TopicT

from xgr_stream.config import StreamConfig
from xgr_stream.errors import InvalidEvent, InvalidInput
from xgr_stream.metrics import Metrics
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.faust_topic import Event, batches, raw_topic
from xgr_stream.stream.records import Record
from xgr_stream.types import UserEvent

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 0.5

ToEvent = Callable[[Any], UserEvent | None]


class Repartition:
    """One agent per source. An event is acknowledged when its copy in the events topic is durable, in offset order."""

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
        async def convert(stream: Any) -> None:
            async for events in batches(stream):
                await self._forward(events, to_event)

        is_topic = isinstance(source, TopicT)
        channel = raw_topic(self._app, source.get_topic_name()) if is_topic else source
        name = f"xgr-repartition-{self._config.topics.events}-{number}"
        return self._app.agent(channel, name=name, isolated_partitions=is_topic)(convert)

    async def _forward(self, events: list[Event], to_event: ToEvent) -> None:
        """Write what becomes of these events, then acknowledge them. Tries again for ever."""
        produces = [produce for event in events if (produce := self._converted(event, to_event)) is not None]
        while True:
            try:
                await self._write(produces)
                break
            except KafkaError as error:
                logger.warning("repartitioning %d events failed (%s); trying again", len(produces), error)
                await asyncio.sleep(RETRY_AFTER_S)
        for event in events:
            event.ack()

    async def _write(self, produces: list[tuple[str, bytes | None, bytes]]) -> None:
        if self._driver.runtime is None:
            raise KafkaError("the producer is not started")
        producer = self._driver.runtime.producer
        sent = [await producer.send(topic, value, key) for topic, key, value in produces]
        await asyncio.gather(*sent)

    def _converted(self, event: Event, to_event: ToEvent) -> tuple[str, bytes | None, bytes] | None:
        """(topic, key, value) of the user's event, or of a dead letter; None for a record that is no event."""
        message = event.message
        try:
            converted = to_event(event.value)
        except Exception as error:  # noqa: BLE001  the application's function may raise anything
            refused = error if isinstance(error, InvalidInput) else InvalidEvent(_reason(error))
            self._metrics.dead_letters.labels(refused.code).inc()
            letter = protocol.dead_letter_message(_record(message), refused)
            return (self._config.topics.dead_letters, _bytes(message.key), codec.encode(letter, self._config.codec))
        if converted is None:
            return None
        value = codec.encode(protocol.event_message(converted), self._config.codec)
        return (self._config.topics.events, converted.user_id.encode(), value)


def _reason(error: Exception) -> str:
    return f"the record can't be converted to an event: {type(error).__name__}"


def _bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _record(message: Any) -> Record:
    """What a dead letter tells of a message; a channel's has no bytes."""
    timestamp_ms = round((message.timestamp or time.time()) * 1000)
    return Record(
        message.topic, message.partition, message.offset, _bytes(message.key), _bytes(message.value), timestamp_ms
    )
