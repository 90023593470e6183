"""Transactions on Apache Kafka: each answer once for a reader of what is committed, whatever befalls a worker."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import TopicPartition

from tests.integration.conftest import own_topics
from tests.integration.workers import kafka_worker, until
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig, TransactionConfig
from xgr_stream.stream import codec
from xgr_stream.stream.connection import Connection, stop_client
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.stream.transaction import Writer
from xgr_stream.stream.transactions import start_producer, transactional_id
from xgr_stream.testing import NullEngine
from xgr_stream.testing.broker import ApacheKafka
from xgr_stream.types import RecommendRequest

HOME = os.environ.get("XGR_TEST_KAFKA_HOME")
pytestmark = pytest.mark.skipif(HOME is None, reason="needs Apache Kafka: XGR_TEST_KAFKA_HOME")


@pytest.fixture(scope="module")
def kafka() -> Iterator[ApacheKafka]:
    assert HOME is not None
    with ApacheKafka(HOME) as kafka:
        yield kafka


@pytest.fixture
def config() -> StreamConfig:
    return StreamConfig(
        topics=own_topics(),
        transactions=TransactionConfig(commit_interval_ms=20, timeout_s=10),
        default_timeout_ms=20_000,
        shutdown_timeout_s=5.0,
    )


@pytest_asyncio.fixture
async def client(kafka: ApacheKafka, config: StreamConfig) -> AsyncIterator[RecommendClient]:
    await ensure_topics(kafka.connection, config.topics, 4)
    async with RecommendClient(kafka.connection, topics=config.topics, read_committed=True) as client:
        yield client


async def records_of(connection: Connection, topic: str, isolation: str = "read_committed") -> list[Any]:
    """All records of a topic of 4 partitions that such a reader sees now."""
    consumer = connection.consumer(auto_offset_reset="earliest", isolation_level=isolation)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(4)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[Any] = []
        while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await stop_client(consumer)


async def answers(connection: Connection, config: StreamConfig, isolation: str = "read_committed") -> Counter[str]:
    """Request id → how many answers a reader sees."""
    records = await records_of(connection, config.topics.responses, isolation)
    return Counter(codec.decode(record.value, 1 << 20)["request_id"] for record in records)


async def test_events_answers_and_offsets_are_committed(
    kafka: ApacheKafka, config: StreamConfig, client: RecommendClient
) -> None:
    group = f"group-{config.topics.events}"
    async with kafka_worker(kafka, config, group=group) as driver:
        for number in range(40):
            position = await client.send_event("user-1", f"item-{number}")
        response = await client.recommend("user-1", timeout=20, after=position)
        assert response.event_count == 40
        assert driver.runtime.setup.metrics.transactions.labels("committed")._value.get() >= 2
    async with kafka_worker(kafka, config, group=group) as driver:
        assert (await client.recommend("user-1", timeout=20, after=position)).event_count == 40
        assert driver.runtime.setup.metrics.events_replayed._value.get() == 0  # the offsets were committed
    assert set((await answers(kafka.connection, config)).values()) == {1}
    assert client.duplicates == 0
