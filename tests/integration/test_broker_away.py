"""A broker that goes away: clients wait for it in peace, restores go on, and a worker still ends within its time."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError

from tests.integration.workers import kafka_worker, until
from xgr_stream.client import RecommendClient
from xgr_stream.config import EngineConfig, StreamConfig, TopicNames
from xgr_stream.errors import DeadlineExceeded, InvalidRequest
from xgr_stream.metrics import Metrics
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.recovery import Recovery
from xgr_stream.stream.setup import Setup
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.testing import NullEngine
from xgr_stream.testing.broker import Broker, EmbeddedBroker

pytestmark = pytest.mark.embedded
REFUSED = "Unable to update metadata"
embedded_alone = pytest.mark.skipif("XGR_TEST_KAFKA_HOME" in os.environ, reason="with the embedded broker alone")


@embedded_alone
async def test_clients_do_not_ask_for_it_as_fast_as_they_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    with EmbeddedBroker() as broker:
        topics = StreamConfig().topics
        await ensure_topics(broker.connection, topics, 1)
        producer = await broker.connection.start_producer()
        await producer.send_and_wait(topics.events, b"before", partition=0)
        broker.stop()
        written = await producer.send(topics.events, b"meanwhile", partition=0)
        await until(lambda: REFUSED in caplog.text)
        caplog.clear()
        await asyncio.sleep(2)
        assert 1 <= caplog.text.count(REFUSED) <= 10
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) < 60
        written.cancel()
        await asyncio.wait([asyncio.ensure_future(producer.stop())], timeout=0.1)
        await producer.client.close()


@embedded_alone
async def test_an_event_waits_for_it_no_longer_than_it_may() -> None:
    with EmbeddedBroker() as broker:
        await ensure_topics(broker.connection, TopicNames(), 1)
        async with RecommendClient(broker.connection) as client:
            for wrong in (-1, True):
                with pytest.raises(InvalidRequest, match=f"timeout must be a number of seconds .* not {wrong}"):
                    await client.send_event("user-1", "item-1", timeout=wrong)
            await client.send_event("user-1", "item-1", timeout=20)
            broker.stop()
            async with asyncio.timeout(20):
                with pytest.raises(DeadlineExceeded, match="acknowledged the event within 200 ms"):
                    await client.send_event("user-1", "item-1", timeout=0.2)


@embedded_alone
async def test_a_worker_ends_within_its_time_without_a_broker() -> None:
    config = StreamConfig(shutdown_timeout_s=0.5)
    with EmbeddedBroker() as broker:
        async with kafka_worker(broker, config) as driver:
            producer = driver.runtime.producer
            broker.stop()
            written = await producer.send(config.topics.dead_letters, b"never", partition=0)
            written.add_done_callback(lambda future: future.cancelled() or future.exception())
            stopped_at = time.monotonic()
        assert time.monotonic() - stopped_at < 12


@embedded_alone
async def test_a_worker_that_is_told_to_stop_while_its_broker_goes_away_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its producer then waits for an id of its own, for ever."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("aiokafka.producer.sender.Sender._maybe_wait_for_pid", never)
    with EmbeddedBroker() as broker:
        driver = KafkaDriver(Setup(NullEngine(), broker.connection, "group", StreamConfig(), EngineConfig(), Metrics()))
        running = asyncio.create_task(driver.run())
        await asyncio.sleep(2)
        assert not running.done()
        driver.stop()
        await asyncio.wait_for(running, 12)


async def test_a_restore_goes_on_when_the_broker_is_back(
    broker: Broker, config: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt fails when all is fed; the second feeds it again."""
    await ensure_topics(broker.connection, config.topics, 4)
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        async with kafka_worker(broker, config):
            positions = [await client.send_event("user-1", f"item-{n}") for n in range(40)]
            await client.recommend("user-1", timeout=20, after=positions[-1])
        committed, failed = AIOKafkaConsumer.committed, []

        async def fails_once(self: Any, tp: TopicPartition) -> Any:
            if not failed:
                failed.append(tp)
                raise KafkaConnectionError("it is away")
            return await committed(self, tp)

        monkeypatch.setattr(AIOKafkaConsumer, "committed", fails_once)
        async with kafka_worker(broker, config) as driver:
            assert failed
            assert (await client.recommend("user-1", timeout=20)).event_count == 40
            driver.runtime.setup.engine.history.check_integrity()


async def test_what_was_held_while_restoring_is_committed_too(
    broker: Broker, config: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again by a worker that knows it already: nothing is written for it, and its offset goes on all the same."""
    await ensure_topics(broker.connection, config.topics, 4)
    async with (
        RecommendClient(broker.connection, topics=config.topics) as client,
        kafka_worker(broker, config, group="first"),
    ):
        position = await client.send_event("user-1", "item-1")
        await client.recommend("user-1", timeout=20, after=position)
    run = Recovery.run

    async def late(self: Recovery, number: int) -> None:
        await asyncio.sleep(2.5)  # longer than it takes to commit
        await run(self, number)

    monkeypatch.setattr(Recovery, "run", late)
    async with kafka_worker(broker, config, group="second") as driver:
        tp = TopicPartition(config.topics.events, position.partition)
        await until(lambda: driver._committed.get(tp) == position.offset + 1)
