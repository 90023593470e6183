"""What `doctor` says of brokers, where one broker alone can't have it, or not when a test wants it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
    UnsupportedCodecError,
)
from aiokafka.protocol.metadata import MetadataRequest_v5

from xgr_stream.config import TopicNames
from xgr_stream.stream import connection
from xgr_stream.stream.checks import check_brokers, check_group
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.finding import Finding
from xgr_stream.stream.kafka_requests import DescribeTopics, MetadataRequest_v8
from xgr_stream.stream.topic_settings import check_settings
from xgr_stream.stream.topology import CATALOG_CONFIG, all_topics

TOPICS = TopicNames()
CHANGELOG, RESPONSES = TOPICS.changelog, TOPICS.responses


class Cluster:
    """Has one topic alone, and lets nobody make topics."""

    bootstrap = "somewhere:9092"

    def __init__(self, replicas: int, settings: dict[str, str], error_code: int = 0, *, topic: str = CHANGELOG) -> None:
        self._topic = topic
        self._partition = {"partition": 0, "leader": 1, "replicas": list(range(replicas))}
        self._resource = (error_code, "", 2, topic, [(name, value, False, 5) for name, value in settings.items()])

    def admin(self) -> Cluster:
        return self

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def _send_request(self, request: DescribeTopics) -> Any:
        return SimpleNamespace(to_object=lambda: {"topics": self.described()})

    def described(self) -> list[dict[str, Any]]:
        return [{"topic": self._topic, "error_code": 0, "partitions": [self._partition]}]

    async def describe_configs(self, resources: list[Any]) -> list[Any]:
        return [SimpleNamespace(resources=[self._resource])]

    async def create_topics(self, topics: list[Any]) -> None:
        raise KafkaError

    async def delete_topics(self, names: list[str]) -> None: ...


async def findings(cluster: Cluster, dedup_window_ms: int = 60_000) -> list[Finding]:
    found = await check_brokers(cast("Connection", cluster), TOPICS, "murmur2", dedup_window_ms, transactional=False)
    return [finding for finding in found if finding.what.startswith((CHANGELOG, RESPONSES, "the settings"))]


@pytest.mark.parametrize(("replicas", "in_sync", "warned"), [(1, "1", False), (3, "1", True), (3, "2", False)])
@pytest.mark.parametrize(("topic", "policy"), [(CHANGELOG, "compact"), (RESPONSES, "delete")])
async def test_writes_of_one_replica_alone_are_warned_of(
    replicas: int, in_sync: str, warned: bool, topic: str, policy: str
) -> None:
    found = await findings(Cluster(replicas, {"cleanup.policy": policy, "min.insync.replicas": in_sync}, topic=topic))
    assert [finding.grade for finding in found] == ["ok", "warning"][: 1 + warned]
    if warned:
        assert "has min.insync.replicas=1" in found[1].what
        assert found[1].remedy.endswith(f"--entity-name {topic} --add-config min.insync.replicas=2")


async def test_settings_that_may_not_be_read_are_no_error() -> None:
    [found] = await findings(Cluster(1, {}, TopicAuthorizationFailedError.errno))
    assert (found.grade, found.remedy) == ("warning", "allow DescribeConfigs on it")


@pytest.mark.parametrize(
    ("window_ms", "remedy"), [(60_000, None), (600_001, "retention.ms=3600000"), (7_200_000, "retention.ms=7200000")]
)
async def test_answers_are_to_be_kept_for_the_workers_own_window(window_ms: int, remedy: str | None) -> None:
    [found] = await findings(Cluster(1, {"retention.ms": "600000"}, topic=RESPONSES), window_ms)
    assert found.grade == ("ok" if remedy is None else "warning")
    assert remedy is None or found.remedy.endswith(f" {remedy}")


async def about(role: str, **settings: object) -> list[tuple[str, str]]:
    """Grades and remedies of what is found wrong with a topic that is as it should be but for these settings, given
    with underscores for their dots; a remedy is what comes behind the topic's name."""
    topic = getattr(TOPICS, role)
    right = {"cleanup.policy": "compact" if role in ("changelog", "catalog") else "delete"}
    right["delete.retention.ms"] = CATALOG_CONFIG["delete.retention.ms"]
    cluster = Cluster(1, right | {name.replace("_", "."): str(value) for name, value in settings.items()}, topic=topic)
    [described] = cluster.described()
    found = await check_settings(cluster, TOPICS, {topic: described}, 60_000)
    wrong = [finding for finding in found if finding.grade != "ok"]
    assert all(
        finding.what.startswith(f"{topic} ") and f" --entity-name {topic} " in finding.remedy for finding in wrong
    )
    return [(finding.grade, finding.remedy.partition("--add-config ")[2]) for finding in wrong]


ROLES = tuple(TopicNames.__dataclass_fields__)


@pytest.mark.parametrize("role", ROLES)
async def test_a_topic_is_to_take_the_largest_record(role: str) -> None:
    assert await about(role, max_message_bytes=1 << 20) == []
    grade = "error" if role in ("responses", "changelog", "dead_letters") else "warning"
    assert await about(role, max_message_bytes=(1 << 20) - 1) == [(grade, "max.message.bytes=1048588")]


@pytest.mark.parametrize("role", ["events", "requests", "responses", "dead_letters"])
@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
async def test_what_is_not_to_be_compacted(role: str, policy: str) -> None:
    grade = "warning" if role == "responses" else "error"
    assert await about(role, cleanup_policy=policy) == [(grade, "cleanup.policy=delete")]


@pytest.mark.parametrize(
    ("role", "least_ms", "wanted_ms"),
    [("events", 86_400_000, 604_800_000), ("requests", 3_600_000, 3_600_000), ("responses", 60_000, 3_600_000)],
)
async def test_how_long_records_are_kept(role: str, least_ms: int, wanted_ms: int) -> None:
    too_short = ("warning", f"retention.ms={wanted_ms}")
    unknown = ("warning", "retention.bytes=-1")
    assert await about(role, retention_ms=least_ms) == []
    assert await about(role, retention_ms=-1) == []
    assert await about(role, retention_ms=least_ms - 1) == [too_short]
    assert await about(role, retention_bytes=1 << 40) == [unknown]
    assert await about(role, retention_ms=0, retention_bytes=0) == [too_short, unknown]
    both = await about(role, cleanup_policy="compact,delete", retention_ms=1, retention_bytes=1)
    assert both[1:] == [too_short, unknown]
    assert len(await about(role, cleanup_policy="compact", retention_ms=1, retention_bytes=1)) == 1


@pytest.mark.parametrize("role", ["changelog", "catalog", "dead_letters"])
async def test_sizes_and_ages_that_do_not_count(role: str) -> None:
    assert await about(role, retention_ms=1, retention_bytes=1) == []


class Busy(Cluster):
    """Has an events topic of three partitions, the last one without a leader, and of each of the others what `read`
    says: records' keys, or an error. A transaction's marker is behind them."""

    def __init__(self, read: dict[int, list[bytes] | Exception] | None = None, **described: Any) -> None:
        super().__init__(1, {}, topic=TOPICS.events)
        self._read = read or {}
        self._described = described

    def described(self) -> list[dict[str, Any]]:
        partitions = [{"partition": number, "leader": (1, 1, -1)[number], "replicas": [1]} for number in range(3)]
        return [{"topic": TOPICS.events, "error_code": 0, "partitions": partitions, **self._described}]

    def consumer(self) -> Busy:
        self._positions: dict[TopicPartition, int] = {}
        return self

    async def stop(self) -> None: ...

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert [tp.partition for tp in partitions] == [0, 1], "of one without a leader nothing can be read"

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 3)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._positions[tp] = offset

    async def position(self, tp: TopicPartition) -> int:
        return self._positions[tp]

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        tp = partitions[0]
        read = self._read.get(tp.partition, [])
        if isinstance(read, Exception):
            raise read
        self._positions[tp] = 3
        return {tp: [SimpleNamespace(key=key, offset=offset) for offset, key in enumerate(read)]}


async def said(cluster: Cluster) -> dict[str, Finding]:
    found = await check_brokers(cast("Connection", cluster), TOPICS, "any", 60_000, transactional=False)
    return {finding.what: finding for finding in found}


async def test_partitions_without_a_leader_are_named_and_the_others_read() -> None:
    found = await said(Busy({0: [b"a"], 1: [b"b", b"c"]}))
    assert found["partitions without a leader: user-events-2"].grade == "error"
    assert found["3 recent records of user-events are where any places them"].grade == "ok"


@pytest.mark.parametrize(
    ("error", "what", "remedy"),
    [
        (
            TopicAuthorizationFailedError(),
            "what is in user-events can't be read: ",
            "--operation Read --topic user-events",
        ),
        (
            UnsupportedCodecError("no snappy"),
            "a record of user-events can't be unpacked here, ",
            "aiokafka[lz4,snappy,zstd]",
        ),
        (NodeNotReadyError(), "what is in user-events can't be read: ", "look at the brokers"),
        (RuntimeError(), "what is in user-events can't be looked at: ", "a defect"),
    ],
)
async def test_records_that_cannot_be_read_are_a_finding_among_others(error: Exception, what: str, remedy: str) -> None:
    found = await said(Busy({0: [b"a"], 1: error}))
    [wrong] = [finding for finding in found.values() if finding.what.startswith(what)]
    assert (wrong.grade, remedy in wrong.remedy) == ("error", True), wrong
    assert "partitions: user-events 3" in found
    assert isinstance(error, RuntimeError) or "1 recent records of user-events are where any places them" in found


async def test_a_check_that_fails_is_a_finding_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(Busy, "describe_configs", broken)
    monkeypatch.setattr(Busy, "create_topics", broken)
    found = await said(Busy({0: [b"a"]}))
    assert found["the topics' settings can't be looked at: ValueError('odd')"].grade == "error"
    assert found["the broker's clock can't be looked at: ValueError('odd')"].grade == "error"
    assert "1 recent records of user-events are where any places them" in found

    monkeypatch.setattr(Busy, "_send_request", broken)
    assert "the topics can't be looked at: ValueError('odd')" in await said(Busy())


async def test_topics_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has just gone may be the one that is asked."""
    monkeypatch.setattr(connection, "RETRY_AFTER_S", 0)
    answer, asked = Busy._send_request, []

    async def first_away(self: Busy, request: DescribeTopics) -> Any:
        asked.append(request)
        if len(asked) < 3:
            raise NodeNotReadyError
        return await answer(self, request)

    monkeypatch.setattr(Busy, "_send_request", first_away)
    assert "partitions: user-events 3" in await said(Busy({0: [b"a"]}))


@pytest.mark.parametrize(
    ("code", "grade", "what", "remedy"),
    [
        (UnknownTopicOrPartitionError.errno, "warning", "topics are missing: user-events", "create them"),
        (
            *(TopicAuthorizationFailedError.errno, "error"),
            *("this user may not describe user-events, and brokers don't say whether", "--operation Describe"),
        ),
        (-1, "error", "the brokers say nothing of user-events: UnknownError", "look at the brokers"),
    ],
)
async def test_a_topic_that_is_missing_is_told_from_one_that_may_not_be_seen(
    code: int, grade: str, what: str, remedy: str
) -> None:
    found = await said(Busy(error_code=code, partitions=[]))
    [wrong] = [finding for finding in found.values() if finding.what.startswith(what)]
    assert (wrong.grade, remedy in wrong.remedy) == (grade, True)


@pytest.mark.parametrize(
    ("role", "does"), [("events", "Read"), ("responses", "Read, Write"), ("dead_letters", "Write")]
)
async def test_what_a_worker_does_is_to_be_allowed(role: str, does: str) -> None:
    topic = getattr(TOPICS, role)
    allowed = "this user may read and write topics as workers do"
    found = await said(Busy(topic=topic, topic_authorized_operations=1 << 8))
    for operation in does.split(", "):
        wrong = found[f"this user may not {operation.lower()} {topic}: a worker ends when it does"]
        assert wrong.grade == "error"
        assert f"--operation {operation} --topic {topic}" in wrong.remedy
    assert sum("this user may not" in what for what in found) == len(does.split(", "))
    assert allowed not in found
    assert allowed in await said(Busy(topic=topic, topic_authorized_operations=1 << 3 | 1 << 4))
    assert not [
        what for what in await said(Busy(topic=topic, topic_authorized_operations=-(1 << 31))) if "user" in what.split()
    ]


async def test_topics_are_named_in_their_order() -> None:
    class Missing(Cluster):
        def described(self) -> list[dict[str, Any]]:
            names = reversed(all_topics(TOPICS))
            return [{"topic": name, "error_code": 3, "partitions": []} for name in names]

    assert f"topics are missing: {', '.join(all_topics(TOPICS))}" in await said(Missing(1, {}))


def test_no_topic_is_created_by_asking_for_it() -> None:
    old, new = (DescribeTopics(["a"]).prepare({3: (0, version)}) for version in (7, 12))
    assert isinstance(old, MetadataRequest_v5)
    assert isinstance(new, MetadataRequest_v8)
    assert (old.allow_auto_topic_creation, new.allow_auto_topic_creation) == (False, False)


@pytest.mark.parametrize(
    ("last", "grade"), [(UnknownMemberIdError.errno, "ok"), (GroupAuthorizationFailedError.errno, "error")]
)
async def test_a_coordinator_that_still_loads_is_asked_again(
    last: int, grade: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers every heartbeat with no error."""
    monkeypatch.setattr("xgr_stream.stream.checks.RETRY_AFTER_S", 0)
    codes = [0, 0, last]

    class Coordinator(Cluster):
        async def find_coordinator(self, group_id: str) -> int:
            return 1

        async def _send_request_to_node(self, node_id: int, request: Any) -> Any:
            return SimpleNamespace(error_code=codes.pop(0))

    [found] = await check_group(cast("Connection", Coordinator(1, {})), "group")
    assert (found.grade, codes) == (grade, [])
