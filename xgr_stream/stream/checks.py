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
    GroupLoadInProgressError,
    KafkaConnectionError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    UnsupportedCodecError,
    for_code,
)
from aiokafka.protocol.group import HeartbeatRequest

from xgr_stream.config import Partitioner, TopicNames, TransactionConfig
from xgr_stream.errors import ConfigError
from xgr_stream.stream.connection import RETRY_AFTER_S, Connection, asked, passes, stop_client
from xgr_stream.stream.finding import Finding, allow, looked_at
from xgr_stream.stream.partitioner import partitioner as placing
from xgr_stream.stream.topic_rights import READ, check_described, check_rights, describe_topics
from xgr_stream.stream.topic_settings import check_settings
from xgr_stream.stream.topology import IN_SYNC, REPLICAS, all_topics, co_partitioned
from xgr_stream.stream.transactions import start_producer

MAX_SKEW_MS = 200
"""A deadline counts from the record's timestamp, so clocks that disagree take it away."""
CLOCK_TIMEOUT_S = 10.0
GROUP_TIMEOUT_S = 20.0
"""A broker that has just started has no coordinators yet."""
TOPICS_TIMEOUT_S = 10.0
"""For a moment one may ask a broker that has just gone."""
PLACES_TIMEOUT_S = 20.0
TRANSACTION_TIMEOUT_S = 20.0
LOG_APPEND_TIME = 1
SAMPLE = 50
"""Records of each partition whose place is checked."""


async def check_brokers(
    connection: Connection,
    topics: TopicNames,
    partitioner: Partitioner,
    dedup_window_ms: int,
    transactional: bool,
) -> list[Finding]:
    """Brokers, topics, partitions, the places of recent records, and the clock."""
    admin = connection.admin()
    try:
        await admin.start()
    except (KafkaConnectionError, KafkaError, OSError) as error:
        await admin.close()
        remedy = "check --broker, the network, and the TLS and SASL settings"
        return [Finding("error", f"no broker answers at {connection.bootstrap}: {error}", remedy)]
    findings = [Finding("ok", f"a broker answers at {connection.bootstrap}")]
    found: dict[str, Mapping[str, Any]] = {}
    try:
        findings += await looked_at("the topics", _check_topics(admin, topics, found, transactional))
        findings += await looked_at("the topics' settings", check_settings(admin, topics, found, dedup_window_ms))
        findings += await looked_at("the broker's clock", _check_clock(connection, admin))
    finally:
        await admin.close()
    events = found.get(topics.events)
    if events is not None:
        findings += await looked_at(f"what is in {topics.events}", _check_places(connection, events, partitioner))
    return findings


async def _check_topics(
    admin: Any, topics: TopicNames, found: dict[str, Mapping[str, Any]], transactional: bool
) -> list[Finding]:
    """Enters those that are there into `found`."""
    described = await asked(lambda: describe_topics(admin, all_topics(topics)), TOPICS_TIMEOUT_S)
    found |= {topic["topic"]: topic for topic in described if topic["error_code"] == 0}
    rights = check_rights(topics, found, transactional=transactional)
    return check_described(described) + _check_partitions(topics, found) + rights


def _check_partitions(topics: TopicNames, found: Mapping[str, Any]) -> list[Finding]:
    findings = []
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


async def check_transactions(connection: Connection, config: TransactionConfig, group_id: str) -> list[Finding]:
    """Whether the brokers let a worker of this group have transactions as long as it wants them."""
    name = f"{group_id}/doctor"  # no partition's: those end in a number
    try:
        async with asyncio.timeout(TRANSACTION_TIMEOUT_S):
            producer = await start_producer(connection, name, config.timeout_s)
        await stop_client(producer)
    except ConfigError as error:
        return [Finding("error", str(error), "mend what it names, or run workers without --transactional")]
    except (KafkaError, OSError, TimeoutError) as error:
        remedy = "transaction.state.log.replication.factor must be at most the number of brokers (a single one: 1)"
        return [Finding("error", f"no transactional producer can be started: {error!r}", remedy)]
    return [Finding("ok", f"transactions of up to {config.timeout_s:g} s, under ids that begin with {group_id}/")]


async def check_group(connection: Connection, group_id: str) -> list[Finding]:
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
        return [Finding("ok", f"workers may join group {group_id}")]
    if isinstance(error, GroupAuthorizationFailedError):
        what = f"workers may not join group {group_id}, and end as they start"
        return [Finding("error", what, allow(READ, f"--group {group_id}"))]
    what = f"nobody says whether workers may join group {group_id}: {error!r}"
    return [Finding("warning", what, "look at the brokers")]


async def _heartbeat(admin: Any, group_id: str) -> KafkaError:
    """What the group's coordinator says to one of nobody."""
    try:
        coordinator = await admin.find_coordinator(group_id)
        response = await admin._send_request_to_node(coordinator, HeartbeatRequest(group_id, 0, ""))
        # A coordinator that still loads its groups says to everybody that all is well.
        raise for_code(response.error_code or GroupLoadInProgressError.errno)
    except KafkaError as error:
        return error


async def _check_places(
    connection: Connection, described: Mapping[str, Any], partitioner: Partitioner
) -> list[Finding]:
    """Whether the last records of each partition that has a leader can be read, and are where their keys belong."""
    topic, num_partitions = described["topic"], len(described["partitions"])
    places = {name: placing(name, num_partitions) for name in ("murmur2", "crc32")}
    findings = []
    led = [TopicPartition(topic, p["partition"]) for p in described["partitions"] if p["leader"] >= 0]
    if not led:
        return []  # another finding tells of it
    keys: list[tuple[int, bytes]] = []
    try:
        await _read_last(connection, led, keys)
    except UnsupportedCodecError as error:
        remedy = (
            "pip install 'aiokafka[lz4,snappy,zstd]' where workers run, or compression.type=gzip where it is written"
        )
        what = f"a record of {topic} can't be unpacked here, nor by a worker that is installed like this: {error}"
        findings.append(Finding("error", what, remedy))
    except (KafkaError, OSError) as error:  # a time-out is an OSError
        denied = isinstance(error, TopicAuthorizationFailedError)
        remedy = allow(READ, f"--topic {topic}") if denied else "look at the brokers"
        findings.append(Finding("error", f"what is in {topic} can't be read: {error!r}", remedy))
    seen = len(keys)
    agree = {
        name: sum(place is not None and place(key) == partition for partition, key in keys)
        for name, place in places.items()
    }
    if not seen:
        return findings or [Finding("ok", f"{topic} has no keyed records yet: nothing to check the partitioner by")]
    if partitioner == "any" or agree[partitioner] == seen:
        return [*findings, Finding("ok", f"{seen} recent records of {topic} are where {partitioner} places them")]
    others = [name for name, count in agree.items() if count == seen]
    what = f"{seen - agree[partitioner]} of {seen} recent records of {topic} are not where {partitioner} places them"
    remedy = "give every producer the same partitioner (librdkafka: partitioner=murmur2_random)"
    if others:
        remedy = f"all are where {others[0]} does: set StreamConfig.partitioner to it"
    return [*findings, Finding("error", what, remedy)]


async def _read_last(connection: Connection, partitions: list[TopicPartition], keys: list[tuple[int, bytes]]) -> None:
    """Enters partition and key of the last records of each into `keys`. Raises `KafkaError` and `TimeoutError`."""
    consumer = connection.consumer()
    try:
        async with asyncio.timeout(PLACES_TIMEOUT_S):
            await consumer.start()
            consumer.assign(partitions)
            begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
            for tp in partitions:
                consumer.seek(tp, max(begins[tp], ends[tp] - SAMPLE))
            # By position: the last offset may be a transaction's marker, which is no record.
            while wanted := [tp for tp in partitions if await consumer.position(tp) < ends[tp]]:
                for tp, records in (await consumer.getmany(*wanted, timeout_ms=500)).items():
                    keys += [(tp.partition, record.key) for record in records if record.key is not None]
    finally:
        await stop_client(consumer)


async def _check_clock(connection: Connection, admin: Any) -> list[Finding]:
    """How far this machine's clock is from a broker's: by the time that it gives a record, in a topic that is made for
    that and deleted again."""
    name = f"xgr-doctor-{uuid.uuid4().hex}"
    try:
        async with asyncio.timeout(CLOCK_TIMEOUT_S):
            await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"message.timestamp.type": "LogAppendTime"})])
            producer = await connection.start_producer()
            try:
                await producer.send_and_wait(name, b"warm")
                sent = time.time()
                written = await producer.send_and_wait(name, b"probe")
                acknowledged = time.time()
            finally:
                await producer.stop()
    except (KafkaError, TimeoutError) as error:
        return [Finding("warning", f"the broker's clock can't be read: {error!r}", "allow topics named xgr-doctor-*")]
    finally:
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(CLOCK_TIMEOUT_S):
                await admin.delete_topics([name])
    if written.timestamp_type != LOG_APPEND_TIME:
        return [Finding("warning", "the broker's clock can't be read: it does not stamp records", "")]
    around_ms = (acknowledged - sent) * 500
    skew_ms = written.timestamp - (sent + acknowledged) * 500
    what = f"the broker's clock is {skew_ms:+.0f} ms from this machine's, within {around_ms:.0f} ms"
    if abs(skew_ms) - around_ms > MAX_SKEW_MS:
        return [Finding("error", what, "synchronise the clocks (NTP): deadlines count from the records' timestamps")]
    return [Finding("ok", what)]
