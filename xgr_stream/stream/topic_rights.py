"""Topics as the brokers describe them, and what its user may do with each, against what a worker does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka.errors import TopicAuthorizationFailedError, UnknownTopicOrPartitionError, for_code

from xgr_stream.config import TopicNames
from xgr_stream.stream.finding import Finding, allow
from xgr_stream.stream.kafka_requests import DescribeTopics

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


def check_rights(topics: TopicNames, found: Mapping[str, Mapping[str, Any]], *, transactional: bool) -> list[Finding]:
    """What a worker does and this user may not. Brokers before 2.3 don't say."""
    findings = []
    rights = {name: topic.get("topic_authorized_operations", -1) for name, topic in found.items()}
    known = {role: rights[topic] for role in WORKER_DOES if rights.get(topic := getattr(topics, role), -1) >= 0}
    for role, allowed in known.items():
        topic = getattr(topics, role)
        for operation in WORKER_DOES[role]:
            if not allowed & BITS[operation]:
                what = f"this user may not {operation.lower()} {topic}: a worker ends when it does"
                findings.append(Finding("error", what, allow(operation, f"--topic {topic}")))
    if transactional and not known.get("dead_letters", -1) & BITS[READ]:
        what = (
            f"this user may not read {topics.dead_letters}: what a broker leaves open of a transaction there stays so"
        )
        findings.append(Finding("warning", what, allow(READ, f"--topic {topics.dead_letters}")))
    if known and not findings:
        findings.append(Finding("ok", "this user may read and write topics as workers do"))
    return findings
