"""The aiokafka worker against a broker: there and back, restarts, rebalances, its end, and topics that don't fit."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.admin import NewTopic

from tests.integration.workers import kafka_worker, make_topics, until
from xgr_stream.client import RecommendClient
from xgr_stream.config import EngineConfig, StreamConfig
from xgr_stream.errors import HistoryError, ShuttingDown, TopologyError
from xgr_stream.metrics import Metrics
from xgr_stream.stream import changelog
from xgr_stream.stream.health import Pages
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.recommender import Recommender
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.setup import Setup
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.testing import NullEngine
from xgr_stream.testing.broker import Broker
from xgr_stream.types import CacheState, Status


async def test_a_restart_loses_and_repeats_nothing(broker: Broker, config: StreamConfig) -> None:
    await ensure_topics(broker.connection, config.topics, 4)
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        sent = 0
        for _ in range(2):
            async with kafka_worker(broker, config) as driver:
                for _ in range(45):
                    sent += 1
                    position = await client.send_event("user-1", f"item-{sent}")
                response = await client.recommend("user-1", timeout=20, after=position)
                assert response.event_count == sent
                driver.runtime.setup.engine.history.check_integrity()


async def test_a_second_worker_takes_over_with_the_history(broker: Broker, config: StreamConfig) -> None:
    users = [f"user-{n}" for n in range(16)]
    async with (
        kafka_worker(broker, config) as first,
        RecommendClient(broker.connection, topics=config.topics) as client,
    ):

        async def each_remembers_one_event() -> None:
            responses = await asyncio.gather(*(client.recommend(user, timeout=30) for user in users))
            assert [response.event_count for response in responses] == [1] * len(users)

        for user in users:
            await client.send_event(user, "item-1")
        async with kafka_worker(broker, config) as second:
            await until(lambda: len(first.runtime.processor.assigned) == 2)
            assert first.runtime.processor.assigned.isdisjoint(second.runtime.processor.assigned)
            await each_remembers_one_event()
            await _anybody_may_be_asked_for(users, first)
            await until(lambda: _partitions_told_of(first) == first.runtime.processor.assigned)
        await each_remembers_one_event()


@pytest.mark.parametrize("missed", [{}, {"member": "before the group gave it up"}, {"generation": -5}])
async def test_a_rebalance_leaves_alone_what_stays(
    broker: Broker, config: StreamConfig, missed: dict[str, Any]
) -> None:
    """Unless the worker missed an assignment in between: somebody else may have gone on with its partitions."""
    users = [f"user-{n}" for n in range(12)]
    async with (
        kafka_worker(broker, config) as first,
        RecommendClient(broker.connection, topics=config.topics) as client,
    ):
        for user in users:
            await client.recommend(user, timeout=20, after=await client.send_event(user, "item-1"))
        before = dict(first.runtime.processor._partitions)
        assert first._membership is not None
        if missed:
            first._membership = first._membership._replace(**missed)
        async with kafka_worker(broker, config) as second:
            await until(lambda: len(first.runtime.processor.assigned) == 2)
            after = first.runtime.processor._partitions
            own = [user for user in users if first.runtime.processor.owns(user)]
            await until(
                lambda: all(map(first.runtime.setup.engine.is_resident, own))
            )  # those restored are warmed again
            assert [after[number] is before[number] for number in after] == [not missed] * 2
            responses = await asyncio.gather(*(client.recommend(user, timeout=30) for user in users))
            assert [response.event_count for response in responses] == [1] * len(users)
            assert {response.cache for response in responses if response.user_id in own} == {CacheState.WARM}
            assert all(
                not partition.held
                for number, partition in before.items()
                if number in second.runtime.processor.assigned
            )


async def _anybody_may_be_asked_for(users: list[str], worker: KafkaDriver) -> None:
    """In process: directly for the worker's own users, over the request topic for those of another."""
    assert {worker.runtime.processor.owns(user) for user in users} == {True, False}
    recommender = Recommender(worker.runtime.setup.config, worker.runtime.setup.metrics)
    recommender.bind(worker.runtime)
    try:
        responses = await asyncio.gather(*(recommender.recommend(user, timeout=20) for user in users))
        assert [(r.user_id, r.event_count) for r in responses] == [(user, 1) for user in users]
    finally:
        await recommender.release()


def _partitions_told_of(worker: KafkaDriver) -> set[int]:
    """The partitions that the worker says how far it is behind on."""
    (gauge,) = worker.runtime.setup.metrics.events_behind.collect()
    return {int(sample.labels["partition"]) for sample in gauge.samples}


async def test_a_worker_is_not_ready_before_it_is_told_what_to_serve(broker: Broker, config: StreamConfig) -> None:
    setup = Setup(NullEngine(), broker.connection, "group-ready", config, EngineConfig(), Metrics())
    runtime = Runtime(setup, on_progress=lambda *_: None, on_failure=lambda _: None, end_offset=lambda *_: None)
    await runtime.start()
    try:
        assert not runtime.readiness()["ready"]
        runtime.assign([])  # more workers than partitions: this one has nothing to do
        assert runtime.readiness()["ready"]
    finally:
        await runtime.stop()


async def test_what_was_taken_is_answered_before_the_end(broker: Broker, config: StreamConfig) -> None:
    engine, stopped = NullEngine(), threading.Event()
    engine.before_answer = lambda batch: stopped.wait(10)
    await ensure_topics(broker.connection, config.topics, 4)
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        async with kafka_worker(broker, config, engine) as driver:
            asked = [asyncio.create_task(client.recommend(f"user-{n}", timeout=20)) for n in range(30)]
            await until(lambda: driver.runtime.processor.pending == len(asked))
            pages = Pages(lambda: driver.runtime, driver.runtime.setup.metrics)
            assert pages.readyz().status == 200
            driver.stop()
            assert pages.readyz().status == 503
            assert json.loads(pages.readyz().body)["shutting_down"]
            assert pages.healthz().status == 200
            stopped.set()
        # The worker has ended here; the client may still be reading.
        responses = await asyncio.wait_for(asyncio.gather(*asked), 20.0)
        assert {response.status for response in responses} == {Status.UNKNOWN_USER}


async def test_what_cannot_be_answered_in_time_is_refused(broker: Broker, config: StreamConfig) -> None:
    engine, ended = NullEngine(), threading.Event()
    engine.before_answer = lambda batch: ended.wait(30)
    hasty = replace(config, shutdown_timeout_s=8.0)  # so that 2 s are left to refuse them: a busy broker takes 0.1
    await ensure_topics(broker.connection, config.topics, 4)
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        async with kafka_worker(broker, hasty, engine) as driver:
            asked = [asyncio.create_task(client.recommend(f"user-{n}", timeout=20)) for n in range(6)]
            await until(lambda: driver.runtime.processor.pending == len(asked))
            driver.stop()
            refusals = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20.0)
            ended.set()
        assert [type(refusal) for refusal in refusals] == [ShuttingDown] * len(asked)
        assert {str(refusal) for refusal in refusals} == {"the worker shut down before this request was answered"}


async def test_unequal_partition_counts_are_refused(broker: Broker, config: StreamConfig) -> None:
    topics = config.topics
    counts = {topics.events: 4, topics.requests: 3, topics.responses: 4, topics.changelog: 4}
    await make_topics(broker, *(NewTopic(name, count, 1) for name, count in counts.items()))
    with pytest.raises(TopologyError, match=rf"{topics.requests} has 3.*[Rr]ecreate"):
        async with kafka_worker(broker, config):
            pass


async def test_missing_topics_are_refused_if_they_are_not_to_be_created(broker: Broker, config: StreamConfig) -> None:
    with pytest.raises(TopologyError, match=f"{config.topics.events}.*do not: create them"):
        async with kafka_worker(broker, replace(config, partitions=None)):
            pass


async def test_missing_topics_get_the_partitions_of_their_sisters(
    broker: Broker, config: StreamConfig, caplog: pytest.LogCaptureFixture
) -> None:
    await make_topics(broker, NewTopic(config.topics.events, 2, 1))
    async with kafka_worker(broker, config) as driver:
        assert driver.runtime.num_partitions == 2
        assert driver.runtime.processor.assigned == {0, 1}
    assert re.search(rf"WARNING .* {config.topics.events} has 2 partitions, .* to the 4 that", caplog.text)
    caplog.clear()
    async with kafka_worker(broker, replace(config, partitions=2)):
        assert "partitions" not in caplog.text


async def test_a_recreated_events_topic_stops_the_worker(broker: Broker, config: StreamConfig) -> None:
    """The history has seen an offset that the topic does not reach."""
    await ensure_topics(broker.connection, config.topics, 4)
    producer = await broker.connection.start_producer()
    key, value = changelog.delta_key("user-1", 0), changelog._pack((changelog.MAJOR, 1_000, "item-1", None))
    await producer.send_and_wait(config.topics.changelog, value, key, partition=0)
    await producer.stop()
    with pytest.raises(HistoryError, match="recreated"):
        async with kafka_worker(broker, config):
            pass
