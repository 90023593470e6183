"""Requests of Kafka's protocol, and their answers, that aiokafka 0.14 has not, or not in the version that says what we
ask: the tables of fields are those of https://kafka.apache.org/protocol. They are sent by its own clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

_TEXT = String("utf-8")
_COMPACT = CompactString("utf-8")

# What topics are, and what one may do with each


class MetadataResponse_v8(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 3, 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT))),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", _TEXT),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("topic_authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class MetadataRequest_v8(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION, RESPONSE_TYPE = 3, 8, MetadataResponse_v8
    SCHEMA = Schema(
        ("topics", Array(_TEXT)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class DescribeTopics(Request[MetadataRequest_v5 | MetadataRequest_v8]):  # type: ignore[misc]
    """aiokafka's own goes up to version 5, which tells of no rights, and creates topics that are missing."""

    API_KEY = 3

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)

    def build(
        self, request_struct_class: type[MetadataRequest_v5 | MetadataRequest_v8]
    ) -> MetadataRequest_v5 | MetadataRequest_v8:
        rights = (False, True) if request_struct_class is MetadataRequest_v8 else ()
        return request_struct_class(self._names, False, *rights)


# Transactions

Topics = dict[str, list[int]]
"""Topic → numbers of partitions."""
_PARTITIONS = CompactArray(("name", _COMPACT), ("partition_indexes", CompactArray(Int32)), ("tags", TaggedFields))


def _listed(topics: Topics) -> list[tuple[str, list[int], dict[int, bytes]]]:
    """As `_PARTITIONS`."""
    return [(topic, numbers, {}) for topic, numbers in topics.items()]


def _by_partition(*fields: tuple[str, Any]) -> tuple[str, Any]:
    """What an answer says of each partition, by topic."""
    partitions = CompactArray(("partition_index", Int32), *fields, ("tags", TaggedFields))
    return "topics", CompactArray(("name", _COMPACT), ("partitions", partitions), ("tags", TaggedFields))


class DescribeTransactionsResponse_v0(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 65, 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transaction_states",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", _COMPACT),
                ("state", _COMPACT),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(
                        ("topic", _COMPACT),
                        ("partitions", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class DescribeTransactionsRequest_v0(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY, API_VERSION, RESPONSE_TYPE = 65, 0, DescribeTransactionsResponse_v0
    SCHEMA = Schema(("transactional_ids", CompactArray(_COMPACT)), ("tags", TaggedFields))


class DescribeTransactions(Request[DescribeTransactionsRequest_v0]):  # type: ignore[misc]
    API_KEY = 65

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, request_struct_class: type[DescribeTransactionsRequest_v0]) -> DescribeTransactionsRequest_v0:
        return request_struct_class([self._name], {})


class DescribeProducersResponse_v0(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 61, 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        _by_partition(
            ("error_code", Int16),
            ("error_message", _COMPACT),
            (
                "active_producers",
                CompactArray(
                    ("producer_id", Int64),
                    ("producer_epoch", Int32),
                    ("last_sequence", Int32),
                    ("last_timestamp", Int64),
                    ("coordinator_epoch", Int32),
                    ("current_txn_start_offset", Int64),
                    ("tags", TaggedFields),
                ),
            ),
        ),
        ("tags", TaggedFields),
    )


class DescribeProducersRequest_v0(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY, API_VERSION, RESPONSE_TYPE = 61, 0, DescribeProducersResponse_v0
    SCHEMA = Schema(("topics", _PARTITIONS), ("tags", TaggedFields))


class DescribeProducers(Request[DescribeProducersRequest_v0]):  # type: ignore[misc]
    API_KEY = 61

    def __init__(self, topics: Topics) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[DescribeProducersRequest_v0]) -> DescribeProducersRequest_v0:
        return request_struct_class(_listed(self._topics), {})


class OffsetFetchResponse_v7(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 9, 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        _by_partition(
            ("committed_offset", Int64),
            ("committed_leader_epoch", Int32),
            ("metadata", _COMPACT),
            ("error_code", Int16),
        ),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )


class OffsetFetchRequest_v7(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY, API_VERSION, RESPONSE_TYPE = 9, 7, OffsetFetchResponse_v7
    SCHEMA = Schema(
        ("group_id", _COMPACT),
        ("topics", _PARTITIONS),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class FetchStableOffsets(Request[OffsetFetchRequest_v7]):  # type: ignore[misc]
    """aiokafka's own can't ask whether a transaction that commits offsets is open: that came with version 7."""

    API_KEY = 9

    def __init__(self, group_id: str, topics: Topics) -> None:
        self._group_id = group_id
        self._topics = topics

    def build(self, request_struct_class: type[OffsetFetchRequest_v7]) -> OffsetFetchRequest_v7:
        return request_struct_class(self._group_id, _listed(self._topics), True, {})
