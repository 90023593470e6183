"""What `xgr-stream doctor` looks at on the brokers' side. Each check ends in findings.

Nothing is changed but for one topic, made to read the broker's clock by and deleted again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.group import HeartbeatRequest

from xgr_stream.config import Partitioner, TopicNames, TransactionConfig
from xgr_stream.errors import ConfigError
from xgr_stream.stream.connection import RETRY_AFTER_S, Connection, passes, stop_client
from xgr_stream.stream.finding import Finding
from xgr_stream.stream.partitioner import partitioner as placing
from xgr_stream.stream.topic_settings import check_settings
from xgr_stream.stream.topology import IN_SYNC, REPLICAS, all_topics, co_partitioned
from xgr_stream.stream.transactions import start_producer

MAX_SKEW_MS = 200
"""A deadline counts from the record's timestamp, so clocks that disagree take it away."""
CLOCK_TIMEOUT_S = 10.0
GROUP_TIMEOUT_S = 20.0
"""A broker that has just started has no coordinators yet."""
TRANSACTION_TIMEOUT_S = 20.0
LOG_APPEND_TIME = 1
SAMPLE = 50
"""Records of each partition whose place is checked."""


async def check_brokers(
    connection: Connection, topics: TopicNames, partitioner: Partitioner, dedup_window_ms: int
) -> list[Finding]:
    """Brokers, topics, partitions, the places of recent records, and the clock."""
    admin = connection.admin()
    try:
        await admin.start()
    except (KafkaConnectionError, KafkaError, OSError) as error:
        await admin.close()
        remedy = "check --broker, the network, and the TLS and SASL settings"
        return [Finding("error", f"no broker answers at {connection.bootstrap}: {error}", remedy)]
    try:
        described = await admin.describe_topics(list(all_topics(topics)))
        found = {topic["topic"]: topic for topic in described if topic["error_code"] == 0}
        findings = [Finding("ok", f"a broker answers at {connection.bootstrap}")]
        findings += _check_topics(topics, found)
        findings += await check_settings(admin, topics, found, dedup_window_ms)
        findings.append(await _check_clock(connection, admin))
    finally:
        await admin.close()
    events = found.get(topics.events)
    if events is not None:
        findings += await _check_places(connection, topics.events, len(events["partitions"]), partitioner)
    return findings


def _check_topics(topics: TopicNames, found: Mapping[str, Any]) -> list[Finding]:
    findings = []
    missing = [name for name in all_topics(topics) if name not in found]
    if missing:
        remedy = "create them (docker/create-topics.sh), or let a worker do it (--partitions)"
        findings.append(Finding("warning", f"topics are missing: {', '.join(missing)}", remedy))
    counts = {name: len(found[name]["partitions"]) for name in co_partitioned(topics) if name in found}
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    if len(set(counts.values())) > 1:
        remedy = "make new topics with equal counts and replay the events into them; never add partitions"
        findings.append(Finding("error", f"partition counts differ: {listed}", remedy))
    elif counts:
        findings.append(Finding("ok", f"partitions: {listed}"))
    if topics.catalog in found and (count := len(found[topics.catalog]["partitions"])) != 1:
        what = f"{topics.catalog} has {count} partitions: a catalog's version is a place in its only one"
        findings.append(Finding("error", what, "recreate it with one partition"))
    leaderless = [
        f"{name}-{p['partition']}" for name, topic in found.items() for p in topic["partitions"] if p["leader"] < 0
    ]
    if leaderless:
        findings.append(
            Finding("error", f"partitions without a leader: {', '.join(leaderless)}", "start their brokers")
        )
    single = [name for name, topic in found.items() if any(len(p["replicas"]) < 2 for p in topic["partitions"])]
    if single:
        remedy = f"in production: replication {REPLICAS} and {'='.join(IN_SYNC)}"
        findings.append(Finding("warning", f"topics with a single replica: {', '.join(single)}", remedy))
    return findings


async def check_transactions(connection: Connection, config: TransactionConfig, group_id: str) -> Finding:
    """Whether the brokers let a worker of this group have transactions as long as it wants them."""
    name = f"{group_id}/doctor"  # no partition's: those end in a number
    try:
        async with asyncio.timeout(TRANSACTION_TIMEOUT_S):
            producer = await start_producer(connection, name, config.timeout_s)
        await stop_client(producer)
    except ConfigError as error:
        return Finding("error", str(error), "mend what it names, or run workers without --transactional")
    except (KafkaError, OSError, TimeoutError) as error:
        remedy = "transaction.state.log.replication.factor must be at most the number of brokers (a single one: 1)"
        return Finding("error", f"no transactional producer can be started: {error!r}", remedy)
    return Finding("ok", f"transactions of up to {config.timeout_s:g} s, under ids that begin with {group_id}/")


async def check_group(connection: Connection, group_id: str) -> Finding:
    """Whether the brokers let a worker join the group. They are asked with the heartbeat of a member that is not there,
    which changes nothing and takes the right that a member needs; committed offsets and descriptions take less."""
    admin = connection.admin()
    try:
        await admin.start()
        async with asyncio.timeout(GROUP_TIMEOUT_S):
            while passes(error := await _heartbeat(admin, group_id)):  # noqa: ASYNC110  it is another process
                await asyncio.sleep(RETRY_AFTER_S)
    except (KafkaError, OSError, TimeoutError) as failure:
        error = failure
    finally:
        await admin.close()
    if isinstance(error, UnknownMemberIdError):
        return Finding("ok", f"workers may join group {group_id}")
    if isinstance(error, GroupAuthorizationFailedError):
        what = f"workers may not join group {group_id}, and end as they start"
        remedy = f"kafka-acls --add --allow-principal User:NAME --operation Read --group {group_id}"
        return Finding("error", what, remedy)
    return Finding(
        "warning", f"nobody says whether workers may join group {group_id}: {error!r}", "look at the brokers"
    )


async def _heartbeat(admin: Any, group_id: str) -> KafkaError:
    """What the group's coordinator says to one of nobody."""
    try:
        coordinator = await admin.find_coordinator(group_id)
        response = await admin._send_request_to_node(coordinator, HeartbeatRequest(group_id, 0, ""))
        raise for_code(response.error_code)
    except KafkaError as error:
        return error


async def _check_places(
    connection: Connection, topic: str, num_partitions: int, partitioner: Partitioner
) -> list[Finding]:
    """Whether the last records of each partition are where their keys belong."""
    places = {name: placing(name, num_partitions) for name in ("murmur2", "crc32")}
    agree = dict.fromkeys(places, 0)
    seen = 0
    consumer = connection.consumer()
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(num_partitions)]
        consumer.assign(partitions)
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        wanted = {tp for tp in partitions if ends[tp] > begins[tp]}
        for tp in partitions:
            consumer.seek(tp, max(begins[tp], ends[tp] - SAMPLE))
        deadline = time.monotonic() + 10
        while wanted and time.monotonic() < deadline:
            for tp, records in (await consumer.getmany(*wanted, timeout_ms=500)).items():
                for record in records:
                    if record.key is not None:
                        seen += 1
                        for name, place in places.items():
                            agree[name] += place is not None and place(record.key) == tp.partition
                if records[-1].offset >= ends[tp] - 1:
                    wanted.discard(tp)
    finally:
        await consumer.stop()
    if not seen:
        return [Finding("ok", f"{topic} has no keyed records yet: nothing to check the partitioner by")]
    if partitioner == "any" or agree[partitioner] == seen:
        return [Finding("ok", f"{seen} recent records of {topic} are where {partitioner} places them")]
    others = [name for name, count in agree.items() if count == seen]
    what = f"{seen - agree[partitioner]} of {seen} recent records of {topic} are not where {partitioner} places them"
    if others:
        return [Finding("error", what, f"all are where {others[0]} does: set StreamConfig.partitioner to it")]
    return [Finding("error", what, "give every producer the same partitioner (librdkafka: partitioner=murmur2_random)")]


async def _check_clock(connection: Connection, admin: Any) -> Finding:
    """How far this machine's clock is from a broker's: by the time that it gives a record, in a topic that is made for
    that and deleted again."""
    name = f"xgr-doctor-{uuid.uuid4().hex}"
    try:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"message.timestamp.type": "LogAppendTime"})])
        async with asyncio.timeout(CLOCK_TIMEOUT_S):
            producer = await connection.start_producer()
            try:
                await producer.send_and_wait(name, b"warm")
                sent = time.time()
                written = await producer.send_and_wait(name, b"probe")
                acknowledged = time.time()
            finally:
                await producer.stop()
    except (KafkaError, TimeoutError) as error:
        return Finding("warning", f"the broker's clock can't be read: {error!r}", "allow topics named xgr-doctor-*")
    finally:
        with contextlib.suppress(KafkaError):
            await admin.delete_topics([name])
    if written.timestamp_type != LOG_APPEND_TIME:
        return Finding("warning", "the broker's clock can't be read: it does not stamp records", "")
    around_ms = (acknowledged - sent) * 500
    skew_ms = written.timestamp - (sent + acknowledged) * 500
    what = f"the broker's clock is {skew_ms:+.0f} ms from this machine's, within {around_ms:.0f} ms"
    if abs(skew_ms) - around_ms > MAX_SKEW_MS:
        return Finding("error", what, "synchronise the clocks (NTP): deadlines count from the records' timestamps")
    return Finding("ok", what)
