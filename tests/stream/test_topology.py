"""Which topics and which assignments belong together."""

from __future__ import annotations

from dataclasses import asdict, astuple, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from xgr_stream.config import TopicNames
from xgr_stream.errors import TopologyError
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.topology import (
    all_topics,
    check_apart,
    check_assignment,
    check_counts,
    co_partitioned,
    ensure_topics,
)

TOPICS = TopicNames()


def test_equal_counts_pass_whatever_the_dead_letters_have() -> None:
    check_counts(TOPICS, {**dict.fromkeys(co_partitioned(TOPICS), 8), TOPICS.dead_letters: 3, TOPICS.catalog: 1})


def test_a_catalog_topic_of_several_partitions_is_refused() -> None:
    counts = {**dict.fromkeys(co_partitioned(TOPICS), 8), TOPICS.catalog: 2}
    with pytest.raises(TopologyError, match=r"catalog-updates must have one partition, and it has 2.*Recreate"):
        check_counts(TOPICS, counts)


@pytest.mark.parametrize("odd", co_partitioned(TOPICS))
def test_an_unequal_count_is_refused_by_name(odd: str) -> None:
    counts = {**dict.fromkeys(co_partitioned(TOPICS), 8), TOPICS.catalog: 1, odd: 7}
    with pytest.raises(TopologyError, match=rf"{odd} has 7.*Recreate"):
        check_counts(TOPICS, counts)


def test_an_assignment_is_read_past_other_topics() -> None:
    assigned = [(TOPICS.events, 1), (TOPICS.requests, 1), ("the app's own", 3)]
    assert check_assignment(TOPICS, assigned) == {1}
    assert check_assignment(TOPICS, []) == frozenset()


def test_a_partition_split_between_workers_is_refused() -> None:
    with pytest.raises(TopologyError, match=r"got \[0, 2\] and \[0, 1\].*RangePartitionAssignor"):
        check_assignment(TOPICS, [(TOPICS.events, 0), (TOPICS.events, 2), (TOPICS.requests, 0), (TOPICS.requests, 1)])


OTHERS = TopicNames(*(f"other-{name}" for name in astuple(TOPICS)))


def test_recommenders_of_one_app_may_share_dead_letters_and_the_catalog() -> None:
    check_apart(TOPICS, replace(OTHERS, dead_letters=TOPICS.dead_letters, catalog=TOPICS.catalog))


@pytest.mark.parametrize(
    ("role", "shared"),
    [
        (role, shared)
        for role in asdict(TOPICS)
        for shared in all_topics(TOPICS)
        if (role, shared) not in {("dead_letters", TOPICS.dead_letters), ("catalog", TOPICS.catalog)}
    ],
)
def test_what_is_a_recommenders_own_is_in_no_role_of_another(role: str, shared: str) -> None:
    with pytest.raises(TopologyError, match=rf"^topics must be a recommender's own, and {shared} are those of another"):
        check_apart(TOPICS, replace(OTHERS, **{role: shared}))


class Cluster:
    """Brokers without topics."""

    def __init__(self, brokers: int) -> None:
        self._brokers = brokers
        self.created: dict[str, Any] = {}

    def admin(self) -> Cluster:
        return self

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def list_topics(self) -> list[str]:
        return []

    async def describe_cluster(self) -> dict[str, Any]:
        return {"brokers": [{}] * self._brokers}

    async def create_topics(self, topics: list[Any]) -> Any:
        self.created = {topic.name: topic for topic in topics}
        return SimpleNamespace(topic_errors=[(name, 0) for name in self.created])

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {"topic": name, "error_code": 0, "partitions": [{"leader": 1}] * self.created[name].num_partitions}
            for name in names
        ]


@pytest.mark.parametrize(("brokers", "replicas"), [(1, 1), (2, 2), (3, 3), (5, 3)])
async def test_of_three_replicas_two_must_have_what_is_acknowledged(brokers: int, replicas: int) -> None:
    """Of two, one alone: either broker may be away."""
    cluster = Cluster(brokers)
    assert await ensure_topics(cast("Connection", cluster), TOPICS, 4) == 4
    assert {topic.replication_factor for topic in cluster.created.values()} == {replicas}
    in_sync = [topic.topic_configs.get("min.insync.replicas") for topic in cluster.created.values()]
    assert in_sync == ["2" if replicas == 3 else None] * len(all_topics(TOPICS))
    assert cluster.created[TOPICS.changelog].topic_configs["cleanup.policy"] == "compact"
