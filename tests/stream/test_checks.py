"""What `doctor` says of brokers' settings that one broker alone can't have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from xgr_stream.config import TopicNames
from xgr_stream.stream.checks import check_brokers
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.finding import Finding
from xgr_stream.stream.topic_settings import check_settings
from xgr_stream.stream.topology import CATALOG_CONFIG

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

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [{"topic": self._topic, "error_code": 0, "partitions": [self._partition]}]

    async def describe_configs(self, resources: list[Any]) -> list[Any]:
        return [SimpleNamespace(resources=[self._resource])]

    async def create_topics(self, topics: list[Any]) -> None:
        raise KafkaError

    async def delete_topics(self, names: list[str]) -> None: ...


async def findings(cluster: Cluster, dedup_window_ms: int = 60_000) -> list[Finding]:
    found = await check_brokers(cast("Connection", cluster), TOPICS, "murmur2", dedup_window_ms)
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
    [described] = await cluster.describe_topics([])
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
