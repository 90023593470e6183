"""Which topics and which assignments belong together."""

from __future__ import annotations

import pytest

from xgr_stream.config import TopicNames
from xgr_stream.errors import TopologyError
from xgr_stream.stream.topology import check_assignment, check_counts, co_partitioned

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
