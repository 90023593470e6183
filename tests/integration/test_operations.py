"""`xgr-stream doctor` and `history` against a broker: Apache Kafka, since they ask for what only it has."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from click.testing import CliRunner, Result

from tests.integration.acls import GROUP, TOPIC, TRANSACTIONAL_ID, allow_describe_alone
from tests.integration.workers import kafka_worker, make_topics, until
from xgr_stream.cli.main import main
from xgr_stream.config import StreamConfig, TopicNames
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.testing import save_tiny_model, tiny_catalog
from xgr_stream.testing.broker import Broker

pytestmark = pytest.mark.skipif("XGR_TEST_KAFKA_HOME" not in os.environ, reason="needs Apache Kafka")


def command(broker: Broker, topics: TopicNames, *arguments: str, answer: str | None = None) -> Result:
    names = [f"--topic={role}={getattr(topics, role)}" for role in TopicNames.__dataclass_fields__]
    return CliRunner().invoke(main, [*arguments, "--broker", broker.bootstrap, *names], input=answer)


async def on_a_thread(broker: Broker, topics: TopicNames, *arguments: str, answer: str | None = None) -> Result:
    return await asyncio.to_thread(command, broker, topics, *arguments, answer=answer)


def rows(path: Path) -> Path:
    table = {
        "user_id": ["user-1", "user-2", "user-1"],
        "item_id": ["item-1", "item-2", "item-3"],
        "action": ["view", None, "buy"],
    }
    parquet.write_table(pa.table(table), path)
    return path


async def test_histories_are_brought_in_looked_at_and_reset(
    broker: Broker, config: StreamConfig, tmp_path: Path
) -> None:
    topics = config.topics
    async with kafka_worker(broker, config) as driver:
        imported = await on_a_thread(broker, topics, "history", "import", str(rows(tmp_path / "events.parquet")))
        assert imported.output == f"3 events written to {topics.events}\n", imported.output
        history = driver.runtime.setup.engine.history
        await until(lambda: history.num_events == 3)
        refused = await on_a_thread(broker, topics, "history", "reset", "--yes")
        assert refused.exit_code == 1
        assert f"workers of group group-{topics.events} run on {topics.events}, and " in refused.output
    inspected = await on_a_thread(broker, topics, "history", "inspect", "user-1")
    assert inspected.exit_code == 0, (inspected.output, inspected.exception)
    found = json.loads(inspected.stdout)
    assert (found["items"], found["actions"], found["event_count"]) == (["item-1", "item-3"], ["view", "buy"], 2)

    refused = await on_a_thread(broker, topics, "history", "reset", answer="n\n")
    assert refused.exit_code == 1
    assert json.loads((await on_a_thread(broker, topics, "history", "inspect", "user-1")).stdout)["event_count"] == 2
    other = broker.connection.group_consumer(f"other-{topics.events}")  # whoever else reads the events is in no way
    await other.start()
    other.subscribe([topics.events])
    await until(other.assignment)
    done = await on_a_thread(broker, topics, "history", "reset", "--yes")
    await other.stop()
    assert done.exit_code == 0, done.output
    assert json.loads((await on_a_thread(broker, topics, "history", "inspect", "user-1")).stdout)["event_count"] == 0
    async with kafka_worker(broker, config, group=f"again-{topics.events}") as again:
        history = again.runtime.setup.engine.history
        await until(lambda: history.num_events == 3)
    doctor = await on_a_thread(broker, topics, "doctor")
    assert f"ok       {topics.changelog} is compacted" in doctor.output, doctor.output


async def test_what_cannot_be_imported_is_said_before_anything_is_written(
    broker: Broker, config: StreamConfig, tmp_path: Path
) -> None:
    topics, path = config.topics, tmp_path / "events.parquet"
    lost = await on_a_thread(broker, topics, "history", "import", str(rows(path)))
    assert (lost.exit_code, lost.output) == (
        1,
        f"Error: topology: topic {topics.events} must exist (--topic events=NAME names another)\n",
    )
    await ensure_topics(broker.connection, topics, 1)
    parquet.write_table(pa.table({"user_id": ["user-1", "user-1"], "item_id": ["item-1", None]}), path)
    wrong = await on_a_thread(broker, topics, "history", "import", str(path))
    assert wrong.exit_code == 1
    assert f"row 1 of {path}: item_id must be" in wrong.output
    consumer = broker.connection.consumer()
    await consumer.start()
    tp = TopicPartition(topics.events, 0)
    assert await consumer.end_offsets([tp]) == {tp: 0}
    await consumer.stop()


async def test_histories_are_brought_in_where_producers_place_their_users(
    broker: Broker, topics: TopicNames, tmp_path: Path
) -> None:
    await ensure_topics(broker.connection, topics, 4)
    path = rows(tmp_path / "events.parquet")
    imported = await on_a_thread(broker, topics, "history", "import", str(path), "--partitioner", "crc32")
    assert imported.exit_code == 0, imported.output
    places = await on_a_thread(broker, topics, "doctor", "--partitioner", "crc32")
    assert f"ok       3 recent records of {topics.events} are where crc32 places them" in places.output, places.output
    assert "are not where murmur2 places them" in (await on_a_thread(broker, topics, "doctor")).output


async def test_the_doctor_finds_a_working_set_up(broker: Broker, config: StreamConfig, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    async with kafka_worker(broker, config):
        shop = ("--model", str(tmp_path / "model"), "--catalog", str(tmp_path / "catalog.parquet"))
        result = await on_a_thread(broker, config.topics, "doctor", "--users", "1000", *shop)
        other = save_tiny_model(tmp_path / "other", (4, 4))
        both = await on_a_thread(broker, config.topics, "doctor", *shop, "--canary", str(other))
        second = await on_a_thread(
            *(broker, config.topics, "doctor", *shop),
            *("--shadow", str(save_tiny_model(tmp_path / "second", seed=1)), "--challenger-cache-mib", "64"),
        )
        same = await on_a_thread(broker, config.topics, "doctor", *shop, "--shadow", str(tmp_path / "model"))
    assert (second.exit_code, second.output.count("warm on the device in")) == (0, 2), second.output
    assert "warm on the device in 64 MiB" in second.output
    assert (both.exit_code, "canary" in both.output, "the checkpoint's have 2" in both.output) == (1, True, True), (
        both.output
    )
    assert (same.exit_code, "both models are of version" in same.output) == (1, True), same.output
    assert result.exit_code == 0, result.output
    for expected in ("warm on the device", "the broker's clock is", "partitions: ", "histories of 1,000 users"):
        assert expected in result.output
    assert "ERROR" not in result.output


async def test_the_doctor_names_what_is_wrong_and_the_remedy(broker: Broker, topics: TopicNames) -> None:
    await make_topics(broker, NewTopic(topics.events, 3, 1), NewTopic(topics.changelog, 4, 1))
    producer = await broker.connection.start_producer()
    try:
        for number in range(3):
            await producer.send_and_wait(topics.events, b"x", b"user-7", partition=number)
    finally:
        await producer.stop()
    result = await on_a_thread(broker, topics, "doctor", "--device", "nonsense")
    assert f"{topics.events} is not compacted" in result.output, result.output
    assert result.exit_code == 1
    for expected in (
        "device must be 'cpu', or 'cuda' or 'cuda:N' of the",
        "partition counts differ",
        "topics are missing: ",
        "are not where murmur2 places them",
        "cleanup.policy=",
        "→ ",
    ):
        assert expected in result.output, result.output


async def test_the_doctor_names_topics_that_lose_what_they_must_keep(broker: Broker, topics: TopicNames) -> None:
    settings = {
        topics.events: {"cleanup.policy": "compact,delete"},
        topics.requests: {"retention.bytes": "1000000"},
        topics.responses: {"retention.ms": "1000", "max.message.bytes": "100"},
        topics.changelog: {"cleanup.policy": "compact", "delete.retention.ms": "3600000"},
    }
    await make_topics(broker, *(NewTopic(name, 1, 1, topic_configs=its) for name, its in settings.items()))
    result = await on_a_thread(broker, topics, "doctor", "--dedup-window", "90000")
    assert result.exit_code == 1
    for expected in (
        f"ERROR    {topics.events} has cleanup.policy=compact,delete: compaction keeps only each user's last event",
        f"--entity-name {topics.events} --add-config cleanup.policy=delete",
        f"WARNING  {topics.responses} keeps records for 1000 ms: requests that come again within the dedup",
        f"--entity-name {topics.responses} --add-config retention.ms=3600000",
        f"ERROR    {topics.responses} has max.message.bytes=100: a worker ends at its first record that is larger",
        f"WARNING  {topics.requests} has retention.bytes=1000000: nobody can tell for how long it keeps records",
        f"WARNING  {topics.changelog} forgets tombstones after 1 hours",
        f"--entity-name {topics.changelog} --add-config delete.retention.ms=86400000",
    ):
        assert expected in result.output, result.output


async def test_the_doctor_says_whether_workers_may_join_their_group(broker: Broker, topics: TopicNames) -> None:
    group = f"group-{topics.events}"
    result = await on_a_thread(broker, topics, "doctor", f"--group={group}")
    assert f"ok       workers may join group {group}" in result.output, result.output
    await allow_describe_alone(broker.connection, GROUP, group)
    result = await on_a_thread(broker, topics, "doctor", f"--group={group}")
    assert result.exit_code == 1
    assert f"ERROR    workers may not join group {group}" in result.output, result.output
    assert f"--operation Read --group {group}" in result.output


async def test_the_doctor_says_what_a_worker_may_not_do_with_a_topic(broker: Broker, topics: TopicNames) -> None:
    await ensure_topics(broker.connection, topics, 1)
    producer = await broker.connection.start_producer()
    await producer.send_and_wait(topics.events, b"x", b"user-7")
    await producer.stop()
    result = await on_a_thread(broker, topics, "doctor")
    assert "ok       this user may read and write topics as workers do" in result.output, result.output
    for name in (topics.events, topics.responses):
        await allow_describe_alone(broker.connection, TOPIC, name)
    result = await on_a_thread(broker, topics, "doctor")
    assert result.exit_code == 1
    for expected in (
        f"ERROR    this user may not read {topics.events}",
        f"ERROR    this user may not write {topics.responses}",
        f"--operation Write --topic {topics.responses}",
        f"ERROR    what is in {topics.events} can't be read: TopicAuthorizationFailedError",
        "ok       the broker's clock is",
    ):
        assert expected in result.output, result.output


async def test_the_doctor_says_what_a_worker_may_not_do_with_transactions(broker: Broker, topics: TopicNames) -> None:
    await ensure_topics(broker.connection, topics, 1)
    group = f"group-{topics.events}"
    options = ("doctor", "--transactional", f"--group={group}")
    result = await on_a_thread(broker, topics, *options)
    assert f"ok       transactions of up to 30 s, under ids that begin with {group}/" in result.output, result.output
    await allow_describe_alone(broker.connection, TOPIC, topics.dead_letters)
    await allow_describe_alone(broker.connection, TRANSACTIONAL_ID, f"{group}/doctor")
    result = await on_a_thread(broker, topics, *options)
    assert result.exit_code == 1
    for expected in (
        f"ERROR    this user may not write {topics.dead_letters}",
        f"WARNING  this user may not read {topics.dead_letters}: what a broker leaves open of a transaction there",
        f"ERROR    the worker may not use the transactional id {group}/doctor: allow it Write and Describe",
    ):
        assert expected in result.output, result.output


async def test_the_doctor_creates_no_topic_and_reads_transactions_to_their_end(
    broker: Broker, topics: TopicNames
) -> None:
    await make_topics(broker, NewTopic(topics.events, 1, 1))
    producer = await broker.connection.start_transactional_producer(f"doctor-{topics.events}", 10_000)
    async with producer.transaction():
        await producer.send_and_wait(topics.events, b"x", b"user-7")
    await producer.stop()
    for _ in range(2):
        result = await on_a_thread(broker, topics, "doctor")
        assert f"topics are missing: {topics.requests}, {topics.responses}, " in result.output, result.output
    assert f"ok       1 recent records of {topics.events} are where murmur2 places them" in result.output
    assert "can't be read" not in result.output, result.output


def test_the_doctor_without_a_broker(topics: TopicNames) -> None:
    result = CliRunner().invoke(main, ["doctor", "--broker", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "ERROR    no broker answers at 127.0.0.1:1" in result.output
