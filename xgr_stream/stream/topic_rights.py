"""Topics as the brokers describe them, and what its user may do with each, against what a worker does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka.errors import TopicAuthorizationFailedError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from xgr_stream.config import TopicNames
from xgr_stream.stream.finding import Finding, allow

READ, WRITE = "Read", "Write"
BITS = {READ: 1 << 3, WRITE: 1 << 4}
"""Of `topic_authorized_operations`."""
WORKER_DOES = {
    "events": (READ,),
    "requests": (READ,),
    "responses": (READ, WRITE),
    "changelog": (READ, WRITE),
    "catalog": (READ,),
    "dead_letters": (WRITE,),
}
_TEXT = String("utf-8")


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


async def describe_topics(admin: Any, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """What the brokers say of each, of one that is missing too, in this order. Creates none. Raises `KafkaError`."""
    response = await admin._send_request(DescribeTopics(names))
    return sorted(response.to_object()["topics"], key=lambda topic: names.index(topic["topic"]))


def check_described(described: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Those that are missing, or that nothing is said of."""
    findings = []
    errors: dict[int, list[str]] = {}
    for topic in described:
        errors.setdefault(topic["error_code"], []).append(topic["topic"])
    errors.pop(0, None)
    if missing := errors.pop(UnknownTopicOrPartitionError.errno, None):
        remedy = "create them (docker/create-topics.sh), or let a worker do it (--partitions)"
        findings.append(Finding("warning", f"topics are missing: {', '.join(missing)}", remedy))
    if hidden := errors.pop(TopicAuthorizationFailedError.errno, None):
        what = f"this user may not describe {', '.join(hidden)}, and brokers don't say whether they are there"
        findings.append(Finding("error", what, f"{allow('Describe', '--topic NAME')}; create those that are missing"))
    for code, names in errors.items():
        what = f"the brokers say nothing of {', '.join(names)}: {for_code(code).__name__}"
        findings.append(Finding("error", what, "look at the brokers"))
    return findings


def check_rights(topics: TopicNames, found: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """What a worker does and this user may not. Brokers before 2.3 don't say."""
    findings = []
    known = 0
    for role, operations in WORKER_DOES.items():
        topic = getattr(topics, role)
        rights = found.get(topic, {}).get("topic_authorized_operations", -1)
        if rights < 0:
            continue
        known += 1
        for operation in operations:
            if not rights & BITS[operation]:
                what = f"this user may not {operation.lower()} {topic}: a worker ends when it does"
                findings.append(Finding("error", what, allow(operation, f"--topic {topic}")))
    if known and not findings:
        findings.append(Finding("ok", "this user may read and write topics as workers do"))
    return findings
