"""What `doctor` says of brokers' settings that one broker alone can't have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from xgr_stream.config import TopicNames
from xgr_stream.stream.checks import Finding, check_brokers
from xgr_stream.stream.connection import Connection

CHANGELOG = TopicNames().changelog


class Cluster:
    """Has the changelog alone, and lets nobody make topics."""

    bootstrap = "somewhere:9092"

    def __init__(self, replicas: int, settings: dict[str, str], error_code: int = 0) -> None:
        self._partition = {"partition": 0, "leader": 1, "replicas": list(range(replicas))}
        self._resource = (error_code, "", 2, CHANGELOG, [(name, value, False, 5) for name, value in settings.items()])

    def admin(self) -> Cluster:
        return self

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [{"topic": CHANGELOG, "error_code": 0, "partitions": [self._partition]}]

    async def describe_configs(self, resources: list[Any]) -> list[Any]:
        return [SimpleNamespace(resources=[self._resource])]

    async def create_topics(self, topics: list[Any]) -> None:
        raise KafkaError

    async def delete_topics(self, names: list[str]) -> None: ...


async def findings(cluster: Cluster) -> list[Finding]:
    found = await check_brokers(cast("Connection", cluster), TopicNames(), "murmur2")
    return [finding for finding in found if finding.what.startswith((CHANGELOG, "the settings"))]


@pytest.mark.parametrize(("replicas", "in_sync", "warned"), [(1, "1", False), (3, "1", True), (3, "2", False)])
async def test_writes_of_one_replica_alone_are_warned_of(replicas: int, in_sync: str, warned: bool) -> None:
    found = await findings(Cluster(replicas, {"cleanup.policy": "compact", "min.insync.replicas": in_sync}))
    assert [finding.grade for finding in found] == ["ok", "warning"][: 1 + warned]
    if warned:
        assert "has min.insync.replicas=1" in found[1].what
        assert found[1].remedy.endswith(f"--entity-name {CHANGELOG} --add-config min.insync.replicas=2")


async def test_settings_that_may_not_be_read_are_no_error() -> None:
    [found] = await findings(Cluster(1, {}, TopicAuthorizationFailedError.errno))
    assert (found.grade, found.remedy) == ("warning", "allow DescribeConfigs on it")
