"""Transactions on Apache Kafka: each answer once for a reader of what is committed, whatever befalls a worker."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.errors import InvalidTxnState, KafkaConnectionError, ProducerFenced
from aiokafka.producer.transaction_manager import TransactionManager

from tests.integration.conftest import own_topics
from tests.integration.workers import kafka_worker, make_topics, until
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig, TransactionConfig
from xgr_stream.errors import Fenced
from xgr_stream.history import HistoryStore
from xgr_stream.stream import changelog, codec
from xgr_stream.stream.checks import check_transactions
from xgr_stream.stream.connection import Connection, stop_client
from xgr_stream.stream.partitioner import by_key
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.stream.transactions import MAX_FAILURES, start_producer, transactional_id
from xgr_stream.testing.broker import ApacheKafka, Broker
from xgr_stream.types import RecommendRequest, UserEvent

pytestmark = pytest.mark.skipif(
    "XGR_TEST_KAFKA_HOME" not in os.environ, reason="needs Apache Kafka: XGR_TEST_KAFKA_HOME"
)


@pytest.fixture
def config() -> StreamConfig:
    return StreamConfig(
        topics=own_topics(),
        transactions=TransactionConfig(commit_interval_ms=20, timeout_s=10),
        default_timeout_ms=20_000,
        shutdown_timeout_s=5.0,
    )


@pytest_asyncio.fixture
async def client(broker: Broker, config: StreamConfig) -> AsyncIterator[RecommendClient]:
    await ensure_topics(broker.connection, config.topics, 4)
    async with RecommendClient(broker.connection, topics=config.topics, read_committed=True) as client:
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
    broker: Broker, config: StreamConfig, client: RecommendClient
) -> None:
    group = f"group-{config.topics.events}"
    async with kafka_worker(broker, config, group=group) as driver:
        for number in range(40):
            position = await client.send_event("user-1", f"item-{number}")
        response = await client.recommend("user-1", timeout=20, after=position)
        assert response.event_count == 40
        assert driver.runtime.setup.metrics.transactions.labels("committed")._value.get() >= 2
    async with kafka_worker(broker, config, group=group) as driver:
        assert (await client.recommend("user-1", timeout=20, after=position)).event_count == 40
        assert driver.runtime.setup.metrics.events_replayed._value.get() == 0  # the offsets were committed
    assert set((await answers(broker.connection, config)).values()) == {1}
    assert client.duplicates == 0


async def test_an_aborted_transaction_leaves_nothing_visible_and_nothing_in_memory(
    broker: Broker, config: StreamConfig, client: RecommendClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of it is written, and then it is not committed."""
    commit, failed = AIOKafkaProducer.commit_transaction, []

    async def fails_once(self: AIOKafkaProducer) -> None:
        # The one of the first answer may not be committed yet when the client has it.
        if not failed and any(tp.topic == config.topics.changelog for tp in self._txn_manager._txn_partitions):
            failed.append(self)
            raise KafkaConnectionError("it is away")
        await commit(self)

    async with kafka_worker(broker, config) as driver:
        await client.send_event("user-1", "item-1")
        await client.recommend("user-1", timeout=20)
        monkeypatch.setattr(AIOKafkaProducer, "commit_transaction", fails_once)
        for number in range(2, 6):
            position = await client.send_event("user-1", f"item-{number}")
        response = await client.recommend("user-1", timeout=20, after=position)
        assert (response.event_count, response.event_offset) == (5, position.offset)
        assert failed
        assert driver.runtime.setup.metrics.transactions.labels("aborted")._value.get() == 1
        driver.runtime.setup.engine.history.check_integrity()
    assert set((await answers(broker.connection, config)).values()) == {1}
    kept = Counter(record.key for record in await records_of(broker.connection, config.topics.changelog))
    written = Counter(
        record.key for record in await records_of(broker.connection, config.topics.changelog, "read_uncommitted")
    )
    assert sum(written.values()) > sum(kept.values())  # the aborted ones are there


async def test_a_zombie_is_fenced_and_joins_again(
    broker: Broker, config: StreamConfig, client: RecommendClient
) -> None:
    group = f"group-{config.topics.events}"
    async with kafka_worker(broker, config, group=group) as driver:
        position = await client.send_event("user-1", "item-1")
        await client.recommend("user-1", timeout=20, after=position)
        name = transactional_id(group, config.topics.events, position.partition)
        usurper = await start_producer(broker.connection, name, 10)
        position = await client.send_event("user-1", "item-2")
        response = await client.recommend("user-1", timeout=20, after=position)
        assert response.event_count == 2
        assert driver.runtime.setup.metrics.transactions.labels("fenced")._value.get() == 1
        with pytest.raises(ProducerFenced):  # in its turn
            async with usurper.transaction():
                await usurper.send_and_wait(config.topics.changelog, b"late", b"late", partition=position.partition)
        await stop_client(usurper)
    assert set((await answers(broker.connection, config)).values()) == {1}
    assert b"late" not in {record.value for record in await records_of(broker.connection, config.topics.changelog)}


async def test_a_worker_that_is_fenced_again_and_again_says_so(
    broker: Broker, config: StreamConfig, client: RecommendClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgr_stream.stream.transactions.MAX_FAILURES", 1)
    group = f"group-{config.topics.events}"

    async def fenced() -> None:
        async with kafka_worker(broker, config, group=group) as driver:
            position = await client.send_event("user-1", "item-1")
            await client.recommend("user-1", timeout=20, after=position)
            name = transactional_id(group, config.topics.events, position.partition)
            await stop_client(await start_producer(broker.connection, name, 10))
            await client.send_event("user-1", "item-2")
            await until(lambda: driver.runtime.failure)

    with pytest.raises(Fenced, match="another deployment"):
        await fenced()


async def test_answers_ahead_of_a_slow_request_are_not_given_again_by_the_next_owner(
    broker: Broker, config: StreamConfig, client: RecommendClient
) -> None:
    """The first request waits for an event to come; the second is answered; then the worker is gone."""
    group = f"group-{config.topics.events}"
    first = await client.send_event("user-1", "item-1")
    async with kafka_worker(broker, config, group=group) as driver:
        await client.recommend("user-1", timeout=20, after=first)
        slow = RecommendRequest("slow", "user-1", timeout_ms=60_000, min_offset=first.offset + 1)
        waiting = asyncio.create_task(client.respond(slow))
        await until(lambda: driver.runtime.processor.pending == 1)
        for _ in range(3):
            await client.recommend("user-1", timeout=20)
        driver.runtime.processor.close()  # what waits is not answered on the way down
        driver.runtime.drain = _at_once  # type: ignore[method-assign]
    async with kafka_worker(broker, replace(config, dedup_window_ms=0), group=group):
        await client.send_event("user-1", "item-2")
        assert (await waiting).event_count == 2
    counts = await answers(broker.connection, config)
    assert (len(counts), set(counts.values())) == (5, {1})
    assert client.duplicates == 0


async def _at_once(timeout_s: float) -> None:
    """A drain that nothing is waited for in."""


async def test_copies_are_in_the_transaction_and_a_topic_that_is_not_there_holds_nothing_up(
    broker: Broker, config: StreamConfig, client: RecommendClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgr_stream.stream.copies.LOOK_UP_TIMEOUT_S", 0.5)
    copies = f"copies-{config.topics.events}"
    await make_topics(broker, NewTopic(copies, 4, 1))
    async with kafka_worker(broker, config) as driver:
        for reply_to in (copies, "nobody-has-this", copies):
            await client.respond(RecommendRequest(f"to-{reply_to}", "user-1", reply_to=reply_to, timeout_ms=20_000))
        assert driver.runtime.setup.metrics.reply_copies_failed._value.get() == 1
        assert driver.runtime.setup.metrics.transactions.labels("aborted")._value.get() == 0
    assert len(await records_of(broker.connection, copies)) == 2


async def test_topics_that_no_transaction_survives_writing_to_end_no_worker(
    broker: Broker, config: StreamConfig, client: RecommendClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends requests chooses them, and more of them than a partition's transactions may fail. The first takes
    its partition away for a moment, and stands for the others."""
    bad = [f"bad-{number}-{config.topics.events}" for number in range(MAX_FAILURES + 1)]
    await make_topics(broker, *(NewTopic(name, 1, 1) for name in bad))
    send = AIOKafkaProducer.send

    async def refused(self: AIOKafkaProducer, topic: str, *arguments: Any, **options: Any) -> Any:
        if topic in bad:
            raise InvalidTxnState
        return await send(self, topic, *arguments, **options)

    monkeypatch.setattr(AIOKafkaProducer, "send", refused)
    async with kafka_worker(broker, config) as driver:
        asked = [RecommendRequest(f"to-{name}", "user-1", reply_to=name, timeout_ms=20_000) for name in bad]
        for request in asked:
            await client.respond(request)
        assert driver.runtime.failure is None
        metrics = driver.runtime.setup.metrics
        assert metrics.transactions.labels("aborted")._value.get() == 1
        assert metrics.reply_copies_failed._value.get() >= len(bad)


@pytest.fixture(scope="module")
def unverified() -> Iterator[Broker]:
    """A broker that writes what the coordinator does not know of, which is how the tests leave something open."""
    properties = "transaction.partition.verification.enable=false"
    with ApacheKafka(os.environ["XGR_TEST_KAFKA_HOME"], properties=properties) as broker:
        yield broker


async def _ended_but_open(
    connection: Connection, config: StreamConfig, user: str, *, committed: bool, forgotten: bool
) -> None:
    """Of the partition of the user's first event: a transaction that takes the event in and is open in the changelog
    and among the group's offsets, though its coordinator has ended it, and with it all that it knows of. `forgotten`:
    a worker has taken the partition over since, and was killed before it could do more."""
    topics, history = config.topics, HistoryStore(config.history)
    number = by_key("murmur2", 4)(user.encode())
    event = UserEvent(user, "item-1")
    applied = history.apply(event, partition=number, offset=0)
    assert applied is not None
    delta = changelog.entry_of(event, 0, applied, history)
    group = f"group-{topics.events}"
    name = transactional_id(group, topics.events, number)
    producer = await start_producer(connection, name, 10)
    await producer.begin_transaction()
    await producer.send_and_wait(topics.dead_letters, b"known to the coordinator", partition=0)
    await (producer.commit_transaction() if committed else producer.abort_transaction())
    await producer.begin_transaction()
    producer._txn_manager._txn_partitions.add(TopicPartition(topics.changelog, number))  # it is not told of these
    producer._txn_manager._txn_consumer_group = group
    await producer.send_and_wait(topics.changelog, delta.value, delta.key, partition=number)
    await producer.send_offsets_to_transaction({TopicPartition(topics.events, number): 1}, group)
    await stop_client(producer)
    if forgotten:
        await stop_client(await start_producer(connection, name, 10, last_committed=committed))


async def test_what_a_broker_leaves_open_ends_as_its_transaction_did(unverified: Broker) -> None:
    """Apache Kafka does so when a transaction ends while a partition has no leader (docs/log.md)."""
    for committed, forgotten in product((True, False), (True, False)):
        config = StreamConfig(topics=own_topics(), transactions=TransactionConfig(commit_interval_ms=20))
        await ensure_topics(unverified.connection, config.topics, 4)
        async with RecommendClient(unverified.connection, topics=config.topics, read_committed=True) as client:
            await client.send_event("user-1", "item-1")
            await _ended_but_open(unverified.connection, config, "user-1", committed=committed, forgotten=forgotten)
            async with kafka_worker(unverified, config, group=f"group-{config.topics.events}") as driver:
                assert (await client.recommend("user-1", timeout=20)).event_count == 1
                taken_in = driver.runtime.setup.metrics.events._value.get()
                assert taken_in == (0 if committed else 1)


async def test_a_transaction_ends_what_a_broker_has_left_open_of_the_one_before(
    unverified: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would end later, with another one, and maybe not as its offsets did."""
    add, hidden = TransactionManager.maybe_add_partition_to_txn, set()

    def add_unless_it_is_the_first(self: TransactionManager, tp: TopicPartition) -> None:
        if tp.topic == config.topics.changelog and not hidden:
            hidden.add(tp)
            self._txn_partitions.add(tp)  # and the coordinator is not told
        add(self, tp)

    config = StreamConfig(topics=own_topics(), transactions=TransactionConfig(commit_interval_ms=20))
    await ensure_topics(unverified.connection, config.topics, 4)
    async with (
        RecommendClient(unverified.connection, topics=config.topics, read_committed=True) as client,
        kafka_worker(unverified, config) as driver,
    ):
        await client.recommend("user-1", timeout=20)
        tp = TopicPartition(config.topics.changelog, by_key("murmur2", 4)(b"user-1"))
        stable = await _last_stable_offset(unverified.connection, tp)
        monkeypatch.setattr(TransactionManager, "maybe_add_partition_to_txn", add_unless_it_is_the_first)
        committed = driver.runtime.setup.metrics.transactions.labels("committed")._value
        before = committed.get()
        event = await client.send_event("user-1", "item-1")
        await until(lambda: committed.get() > before)
        assert await _last_stable_offset(unverified.connection, tp) == stable
        assert (await client.recommend("user-1", timeout=20, after=event)).event_count == 1
        await until(lambda: committed.get() > before + 1)  # the client may have the answer before we know
        assert hidden == {tp}
        assert await _last_stable_offset(unverified.connection, tp) == stable + 2  # the event, and the marker


async def _last_stable_offset(connection: Connection, tp: TopicPartition) -> int:
    consumer = connection.consumer(isolation_level="read_committed", auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([tp])
        await consumer.getmany(timeout_ms=1_000)
        offset: int = consumer.last_stable_offset(tp)
        return offset
    finally:
        await stop_client(consumer)


async def test_the_doctor_looks_at_transactions(broker: Broker) -> None:
    [finding] = await check_transactions(broker.connection, TransactionConfig(), "shop")
    assert finding.grade == "ok"
    [finding] = await check_transactions(broker.connection, TransactionConfig(timeout_s=10_000), "shop")
    assert finding.grade == "error"
    assert "transaction.max.timeout.ms" in finding.what
