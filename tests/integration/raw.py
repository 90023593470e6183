"""Records as a careless or foreign program writes them, and what comes of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from xgr_stream.config import MAX_BATCH_BYTES, TopicNames
from xgr_stream.stream import codec
from xgr_stream.stream.partitioner import partitioner
from xgr_stream.testing.broker import Broker

MAX_BYTES = 20_000_000
NUM_PARTITIONS = 4

partition_of = partitioner("murmur2", NUM_PARTITIONS)


async def write_too_large(broker: Broker, topic: str, partition: int) -> None:
    """A batch of some kilobytes that decompress to more than is read."""
    size = MAX_BATCH_BYTES + 1
    producer = await broker.connection.start_producer(
        compression_type="zstd", max_request_size=2 * size, max_batch_size=2 * size
    )
    await producer.send_and_wait(topic, bytes(size), b"user-6", partition=partition)
    await producer.stop()


class Raw:
    """Writes any bytes to the requests and events topics; reads all responses and dead letters."""

    def __init__(self, broker: Broker, topics: TopicNames) -> None:
        self._broker = broker
        self._topics = topics
        self._seen: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._producer: AIOKafkaProducer = await self._broker.connection.start_producer(max_request_size=MAX_BYTES)
        self._consumer: AIOKafkaConsumer = self._broker.connection.consumer(auto_offset_reset="earliest")
        await self._consumer.start()
        partitions = [TopicPartition(self._topics.responses, number) for number in range(NUM_PARTITIONS)]
        partitions.append(TopicPartition(self._topics.dead_letters, 0))
        self._consumer.assign(partitions)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()
        await self._producer.stop()

    async def request(self, user_id: str, value: bytes | dict[str, Any], **options: Any) -> None:
        await self._write(self._topics.requests, user_id, value, **options)

    async def event(self, user_id: str, value: bytes | dict[str, Any], **options: Any) -> None:
        await self._write(self._topics.events, user_id, value, **options)

    async def response(self, request_id: str) -> dict[str, Any]:
        return await self._find(lambda message: message.get("request_id") == request_id)

    async def dead_letter(self, user_id: str | None, topic: str | None = None) -> dict[str, Any]:
        """Of a record with this key, and of this topic if one is named."""
        key = None if user_id is None else user_id.encode()
        return await self._find(
            lambda message: "reason" in message and message["key"] == key and topic in (None, message["topic"])
        )

    async def _write(
        self,
        topic: str,
        user_id: str,
        value: bytes | dict[str, Any],
        *,
        wrong_partition: bool = False,
        age_s: float = 0.0,
    ) -> None:
        data = codec.encode(value, "msgpack") if isinstance(value, dict) else value
        assert partition_of is not None
        partition = (partition_of(user_id.encode()) + wrong_partition) % NUM_PARTITIONS
        timestamp_ms = round((time.time() - age_s) * 1000)
        await self._producer.send_and_wait(
            topic, data, user_id.encode(), partition=partition, timestamp_ms=timestamp_ms
        )

    async def _find(self, matches: Any) -> dict[str, Any]:
        async with asyncio.timeout(15):
            while True:
                for message in self._seen:
                    if matches(message):
                        return message
                for records in (await self._consumer.getmany(timeout_ms=200)).values():
                    self._seen += [codec.decode(record.value, MAX_BYTES) for record in records]
