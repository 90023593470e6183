"""The client against a broker, with the worker played by the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer

from tests.integration.raw import write_too_large
from tests.integration.workers import until
from xgr_stream.client import RecommendClient
from xgr_stream.config import TopicNames
from xgr_stream.errors import DeadlineExceeded, InvalidRequest, NothingLegal, ShuttingDown, TopologyError
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.topology import all_topics, ensure_topics
from xgr_stream.testing.broker import Broker
from xgr_stream.types import RecommendRequest, RecommendResponse, Status

pytestmark = pytest.mark.embedded


@contextlib.asynccontextmanager
async def connected(broker: Broker, topics: TopicNames) -> AsyncIterator[tuple[RecommendClient, AIOKafkaProducer]]:
    """A client, and a producer that answers it."""
    await ensure_topics(broker.connection, topics, 2)
    producer = await broker.connection.start_producer()
    try:
        async with RecommendClient(broker.connection, topics=topics) as client:
            yield client, producer
    finally:
        await producer.stop()


def encoded(request_id: str, status: Status = Status.OK, **fields: str) -> bytes:
    return codec.encode(protocol.response_message(RecommendResponse(request_id, "user-1", status, **fields)), "msgpack")


async def test_responses_find_their_requests_in_any_order(broker: Broker, topics: TopicNames) -> None:
    async with connected(broker, topics) as (client, producer):
        ids = [f"request-{n}" for n in range(50)]
        asked = [asyncio.create_task(client.respond(RecommendRequest(own, "user-1"), timeout=10)) for own in ids]
        await asyncio.sleep(0)
        for own in reversed(ids):
            await producer.send_and_wait(topics.responses, encoded(own), b"user-1")
        responses = await asyncio.gather(*asked)
        assert [response.request_id for response in responses] == ids


async def test_late_and_duplicate_responses_are_counted_and_dropped(broker: Broker, topics: TopicNames) -> None:
    async with connected(broker, topics) as (client, producer):
        with pytest.raises(DeadlineExceeded, match="within 50 ms"):
            await client.respond(RecommendRequest("late", "user-1"), timeout=0.05)
        await producer.send_and_wait(topics.responses, encoded("late"), b"user-1")
        asked = asyncio.create_task(client.respond(RecommendRequest("twice", "user-1"), timeout=10))
        await asyncio.sleep(0)
        await producer.send_and_wait(topics.responses, encoded("twice"), b"user-1")
        await producer.send_and_wait(topics.responses, encoded("twice"), b"user-1")
        await producer.send_and_wait(topics.responses, encoded("another client's"), b"user-1")
        assert (await asked).request_id == "twice"
        await until(lambda: client.duplicates)
        assert (client.late, client.duplicates) == (1, 1)


async def test_what_is_no_response_is_passed_over(
    broker: Broker, topics: TopicNames, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(broker, topics) as (client, producer):
        asked = asyncio.create_task(client.respond(RecommendRequest("mine", "user-1"), timeout=10))
        await asyncio.sleep(0)
        await producer.send_and_wait(topics.responses, b"\xc1", b"user-1")
        await write_too_large(broker, topics.responses, 0)
        await producer.send_and_wait(topics.responses, encoded("mine"), b"user-1")
        assert (await asked).status is Status.OK
    assert "is no response: records 1 to 1, of a batch of" in caplog.text


async def test_error_responses_are_raised_as_what_they_name(broker: Broker, topics: TopicNames) -> None:
    async with connected(broker, topics) as (client, producer):
        asked = asyncio.create_task(client.recommend("user-1", timeout=10))
        await until(lambda: client._waiting)
        (own,) = client._waiting
        refusal = encoded(own, Status.ERROR, error="nothing_legal", message="nothing is left")
        await producer.send_and_wait(topics.responses, refusal, b"user-1")
        with pytest.raises(NothingLegal, match="nothing is left"):
            await asked


async def test_topics_are_a_workers_to_create(
    broker: Broker, topics: TopicNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that creates what it is asked for would do it with settings of its own."""
    monkeypatch.setattr("xgr_stream.client.START_TIMEOUT_S", 0.5)
    with pytest.raises(TopologyError, match=f"topic {topics.responses} must exist before a client starts"):
        await RecommendClient(broker.connection, topics=topics).start()
    admin = broker.connection.admin()
    await admin.start()
    assert not set(all_topics(topics)) & set(await admin.list_topics())
    await admin.close()


async def test_a_client_waits_for_the_worker_that_starts_after_it(broker: Broker, topics: TopicNames) -> None:
    client = RecommendClient(broker.connection, topics=topics)
    starting = asyncio.create_task(client.start())
    await asyncio.sleep(0.5)
    assert await ensure_topics(broker.connection, topics, 3) == 3
    await starting
    await client.stop()


async def test_faulty_requests_are_not_sent(broker: Broker, topics: TopicNames) -> None:
    async with connected(broker, topics) as (client, _):
        with pytest.raises(InvalidRequest, match="k must be"):
            await client.recommend("user-1", k=0)
        first = asyncio.create_task(client.respond(RecommendRequest("same", "user-1"), timeout=0.2))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="under way already"):
            await client.respond(RecommendRequest("same", "user-1"))
        with pytest.raises(DeadlineExceeded):
            await first


async def test_stopping_fails_what_waits(broker: Broker, topics: TopicNames) -> None:
    async with connected(broker, topics) as (client, _):
        asked = asyncio.create_task(client.recommend("user-1", timeout=10))
        await until(lambda: client._waiting)
        await asyncio.sleep(0.1)
        await client.stop()
        with pytest.raises(ShuttingDown):
            await asked
        with pytest.raises(RuntimeError, match="must be started"):
            await client.send_event("user-1", "item-1")


async def test_a_position_says_where_the_event_is(broker: Broker, topics: TopicNames) -> None:
    async with connected(broker, topics) as (client, _):
        first = await client.send_event("user-1", "item-1", "view", timestamp_ms=1)
        second = await client.send_event("user-1", "item-2")
        assert second == (first.partition, first.offset + 1)
