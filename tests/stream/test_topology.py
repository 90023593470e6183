"""Which topics and which assignments belong together."""

from __future__ import annotations

from dataclasses import asdict, astuple, replace

import pytest

from xgr_stream.config import TopicNames
from xgr_stream.errors import TopologyError
from xgr_stream.stream.topology import all_topics, check_apart, check_assignment, check_counts, co_partitioned

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
