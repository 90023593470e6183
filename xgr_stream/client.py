"""Ask for recommendations over Kafka, from any program: request out, response in."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from xgr_stream.config import Codec, TopicNames, settings_or_default
from xgr_stream.errors import (
    DeadlineExceeded,
    InvalidInput,
    MessageTooLarge,
    RequestFailed,
    ShuttingDown,
    TopologyError,
)
from xgr_stream.stream import codec as codecs
from xgr_stream.stream import protocol
from xgr_stream.stream.asking import Asking, EventPosition
from xgr_stream.stream.batches import Limits, bound_batches
from xgr_stream.stream.connection import RETRY_AFTER_S, Connection, stop_client
from xgr_stream.types import RecommendRequest, RecommendResponse, UserEvent

__all__ = ["EventPosition", "RecommendClient"]

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
DEFAULT_TIMEOUT_S = 1.0
EVENT_TIMEOUT_S = 30.0
"""Kafka takes 10 s and more to find a partition another leader, and an event given up before may be written twice."""
REMEMBERED = 10_000
"""Finished requests that are remembered to tell late and duplicate responses from those of other clients."""
READ_AT_ONCE = 100
"""Responses, before others of the event loop have their turn."""
MAX_LOGGED = 100
"""Records that are no responses, before the log falls silent about them."""


class RecommendClient(Asking):
    """Many concurrent requests over one producer and one consumer, which reads all responses without a group.

        async with RecommendClient("localhost:9092") as client:
            position = await client.send_event("user-7", "item-1")
            response = await client.recommend("user-7", k=10, timeout=0.5, after=position)

    Belongs to the event loop that entered it. `late` and `duplicates` count the responses that came after their
    request had timed out, or again; they are dropped.
    """

    def __init__(
        self,
        brokers: str | Connection,
        *,
        topics: TopicNames | None = None,
        codec: Codec = "msgpack",
        max_message_bytes: int = 1 << 20,
        read_committed: bool = False,
    ) -> None:
        """`read_committed`: see an answer of transactional workers when it is committed, and once."""
        super().__init__(DEFAULT_TIMEOUT_S)
        self.late = 0
        self.duplicates = 0
        self._connection = Connection.of(brokers)
        self._topics = settings_or_default("topics", topics, TopicNames)
        bound_batches([self._topics.responses], Limits())
        self._codec = codec
        self._max_message_bytes = max_message_bytes
        self._isolation = "read_committed" if read_committed else "read_uncommitted"
        self._waiting: dict[str, asyncio.Future[RecommendResponse]] = {}
        self._finished: OrderedDict[str, bool] = OrderedDict()
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect. Raises `TopologyError` if there is no responses topic, `RequestFailed` if no broker answers."""
        try:
            self._producer = await self._connection.start_producer(max_request_size=self._max_message_bytes)
            self._consumer = self._connection.consumer(isolation_level=self._isolation)
            await self._consumer.start()
            await self._assign(self._producer, self._consumer)
        except BaseException as error:
            await self.stop()
            if isinstance(error, KafkaError):
                raise RequestFailed(f"no connection to {self._connection.bootstrap}: {error}") from error
            raise
        self._reader = asyncio.create_task(self._read(self._consumer), name="xgr-responses")
        self._reader.add_done_callback(self._on_reader_done)

    async def stop(self) -> None:
        """Disconnect. Requests still waiting fail with `ShuttingDown`."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        self._fail_waiting(ShuttingDown("the client was stopped"))
        for part in (self._consumer, self._producer):
            if part is not None:
                await stop_client(part)
        self._consumer = self._producer = None

    @property
    def failed(self) -> bool:
        """Whether responses can't be read any more, so that every later request fails."""
        return self._reader is not None and self._reader.done()

    async def respond(self, request: RecommendRequest, *, timeout: float | None = None) -> RecommendResponse:
        """The response to a request, an error response too, within `timeout` seconds (by default the request's own).

        Raises `DeadlineExceeded` when none comes in time, and `RequestFailed` when the request can't be sent. Its id
        must not be under way already."""
        if timeout is None:
            timeout = DEFAULT_TIMEOUT_S if request.timeout_ms is None else request.timeout_ms / 1000
        if request.request_id in self._waiting:
            raise ValueError(f"request_id must not be under way already, and {request.request_id!r} is")
        future: asyncio.Future[RecommendResponse] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = future
        try:
            async with asyncio.timeout(timeout):
                value = codecs.encode(protocol.request_message(request), self._codec)
                await self._send(self._topics.requests, request.user_id, value)
                return await future
        except TimeoutError:
            raise DeadlineExceeded(f"no response came within {timeout * 1000:.0f} ms") from None
        finally:
            del self._waiting[request.request_id]
            self._finished[request.request_id] = future.done() and not future.cancelled()
            if len(self._finished) > REMEMBERED:
                self._finished.popitem(last=False)

    async def send_event(
        self,
        user_id: str,
        item_id: str,
        action: str | None = None,
        *,
        timestamp_ms: int | None = None,
        timeout: float | None = None,
    ) -> EventPosition:
        """Write an event, durably; its position can be passed to `recommend(after=...)` to read your own write.

        Raises `DeadlineExceeded` if no broker acknowledges it within `timeout` seconds (30 by default): it may be
        written all the same, even later, and twice if it is sent again. `RequestFailed` if it can't be written."""
        timeout_ms = self._timeout_ms(EVENT_TIMEOUT_S if timeout is None else timeout)
        message = protocol.event_message(UserEvent(user_id, item_id, action, timestamp_ms))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._send(self._topics.events, user_id, codecs.encode(message, self._codec))
        except TimeoutError:
            raise DeadlineExceeded(f"no broker acknowledged the event within {timeout_ms} ms") from None

    async def _send(self, topic: str, user_id: str, value: bytes) -> EventPosition:
        """Write a record, durably. The producer places it by its key: murmur2, as Java's does."""
        if self._reader is not None and self._reader.done():
            raise self._unreadable(self._reader.exception())
        if self._producer is None or self._reader is None:
            raise RuntimeError(
                "the client must be started before it is used: async with RecommendClient(...) as client"
            )
        try:
            written = await self._producer.send_and_wait(topic, value, user_id.encode())
        except MessageSizeTooLargeError as error:
            raise MessageTooLarge(f"the message is too large to be sent: {error}") from error
        except KafkaError as error:
            raise RequestFailed(f"the message was not sent to {topic}: {error}") from error
        return EventPosition(written.partition, written.offset)

    async def _assign(self, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer) -> None:
        """Read all responses from now on: every position is known before the first request is sent."""
        topic = self._topics.responses
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                # All names are asked for: to ask for one may create it, before a worker does as it should be.
                while topic not in await consumer.topics():  # noqa: ASYNC110
                    await asyncio.sleep(RETRY_AFTER_S)
                numbers = await producer.partitions_for(topic)
        except (KafkaError, TimeoutError) as error:
            raise TopologyError(f"topic {topic} must exist before a client starts: start a worker first") from error
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)
        for partition in partitions:
            await consumer.position(partition)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        num_read = num_refused = 0
        async for message in consumer:
            num_read += 1
            if num_read % READ_AT_ONCE == 0:  # the consumer gives what it has fetched without ever waiting
                await asyncio.sleep(0)
            try:
                response = protocol.parse_response(codecs.decode(message.value, self._max_message_bytes))
            except InvalidInput as error:
                num_refused += 1
                if num_refused <= MAX_LOGGED:
                    place = message.topic, message.offset
                    logger.warning("a record of %s at offset %d is no response: %s", *place, error)
            else:
                self._on_response(response)

    def _on_response(self, response: RecommendResponse) -> None:
        future = self._waiting.get(response.request_id)
        if future is not None and not future.done():
            future.set_result(response)
        elif future is not None or self._finished.get(response.request_id):
            self.duplicates += 1
        elif response.request_id in self._finished:
            self.late += 1
            self._finished[response.request_id] = True

    def _on_reader_done(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled():
            self._fail_waiting(self._unreadable(reader.exception()))

    @staticmethod
    def _unreadable(error: BaseException | None) -> RequestFailed:
        return RequestFailed(f"responses can't be read any more: {error}")

    def _fail_waiting(self, error: RequestFailed) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
