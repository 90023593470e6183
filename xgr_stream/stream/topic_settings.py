"""The settings of topics, and which of them lose what a recommender must keep, or keep it from writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from xgr_stream.config import TopicNames
from xgr_stream.stream.finding import Finding
from xgr_stream.stream.topology import CATALOG_CONFIG, IN_SYNC, REPLICAS

TOPIC_SOURCE = 1
"""Of a setting, as DescribeConfigs tells it: the topic's own."""
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
YEAR_MS = 365 * DAY_MS
DEFAULT_SETTINGS = {
    "cleanup.policy": "delete",
    "delete.retention.ms": str(DAY_MS),
    "max.message.bytes": "1048588",
    "retention.ms": str(7 * DAY_MS),
}
"""Kafka's, for brokers that tell only what was set."""
RECORD_BYTES = 1 << 20
"""What a record may take: aiokafka's own limit, and that of what clients send and workers take in."""

Check = Callable[[str, Mapping[str, str]], list[Finding]]


async def check_settings(
    admin: Any, topics: TopicNames, found: Mapping[str, Any], dedup_window_ms: int
) -> list[Finding]:
    findings = []
    checks: dict[str, Check] = {
        topics.events: _check_events,
        topics.requests: lambda *_: [],
        topics.responses: partial(_check_responses, window_ms=dedup_window_ms),
        topics.changelog: _check_changelog,
        topics.catalog: _check_catalog,
        topics.dead_letters: lambda *_: [],
    }
    written_by_workers = (topics.responses, topics.changelog, topics.dead_letters)
    for topic, check in checks.items():
        if topic not in found:
            continue
        try:
            settings = await _effective_settings(admin, topic)
        except (KafkaError, IndexError, AttributeError) as error:
            what = f"the settings of {topic} can't be read: {error!r}"
            findings.append(Finding("warning", what, "allow DescribeConfigs on it"))
        else:
            findings += check(topic, settings)
            findings += _check_size(topic, settings, by_workers=topic in written_by_workers)
            findings += _check_in_sync(topic, settings, found[topic]["partitions"])
    return findings


def _check_events(topic: str, settings: Mapping[str, str]) -> list[Finding]:
    policy = settings["cleanup.policy"]
    if "compact" not in policy:
        return [Finding("ok", f"{topic} is not compacted")]
    what = f"{topic} has cleanup.policy={policy}: compaction keeps only each user's last event"
    return [Finding("error", what, _alter(topic, "cleanup.policy=delete"))]


def _check_responses(topic: str, settings: Mapping[str, str], *, window_ms: int) -> list[Finding]:
    retention_ms = int(settings["retention.ms"])
    if not 0 <= retention_ms < window_ms:  # -1: for ever
        return [Finding("ok", f"{topic} keeps answers for the dedup window")]
    what = f"{topic} keeps answers for {retention_ms} ms of the dedup window's {window_ms}: requests are answered twice"
    return [Finding("warning", what, _alter(topic, f"retention.ms={max(HOUR_MS, window_ms)}"))]


def _check_changelog(topic: str, settings: Mapping[str, str]) -> list[Finding]:
    findings = [
        *_check_compacted(topic, settings, "histories"),
        *_check_tombstones(
            *(topic, settings, DAY_MS, "hours", HOUR_MS, str(DAY_MS)),
            "a restore that takes longer brings back users who were forgotten",
        ),
    ]
    return findings or [Finding("ok", f"{topic} is compacted and keeps its tombstones for a day or more")]


def _check_catalog(topic: str, settings: Mapping[str, str]) -> list[Finding]:
    findings = [
        *_check_compacted(topic, settings, "updates"),
        *_check_tombstones(
            *(topic, settings, YEAR_MS, "days", DAY_MS, CATALOG_CONFIG["delete.retention.ms"]),
            "items of the base then come back",
        ),
    ]
    return findings or [Finding("ok", f"{topic} is compacted and keeps its tombstones")]


def _check_compacted(topic: str, settings: Mapping[str, str], held: str) -> list[Finding]:
    policy = settings["cleanup.policy"]
    if policy == "compact":
        return []
    what = f"{topic} has cleanup.policy={policy}: {held} are deleted by age"
    return [Finding("error", what, _alter(topic, "cleanup.policy=compact"))]


def _check_tombstones(
    topic: str, settings: Mapping[str, str], least_ms: int, unit: str, unit_ms: int, wanted_ms: str, otherwise: str
) -> list[Finding]:
    retention_ms = int(settings["delete.retention.ms"])
    if retention_ms >= least_ms:
        return []
    what = f"{topic} forgets tombstones after {retention_ms / unit_ms:.3g} {unit}: {otherwise}"
    return [Finding("warning", what, _alter(topic, f"delete.retention.ms={wanted_ms}"))]


def _check_size(topic: str, settings: Mapping[str, str], *, by_workers: bool) -> list[Finding]:
    most = int(settings["max.message.bytes"])
    if most >= RECORD_BYTES:
        return []
    remedy = _alter(topic, f"max.message.bytes={DEFAULT_SETTINGS['max.message.bytes']}")
    limit = f"{topic} has max.message.bytes={most}"
    if by_workers:
        what = f"{limit}: a worker ends at its first record that is larger, and they take up to {RECORD_BYTES}"
        return [Finding("error", what, remedy)]
    what = f"{limit}: records that workers would take, of up to {RECORD_BYTES}, are refused to those who write them"
    return [Finding("warning", what, remedy)]


def _check_in_sync(topic: str, settings: Mapping[str, str], partitions: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Of a topic with replicas; another finding tells of one without."""
    if min(len(partition["replicas"]) for partition in partitions) < 2 or settings.get("min.insync.replicas") != "1":
        return []
    what = f"{topic} has min.insync.replicas=1: a write may be acknowledged by one broker alone, and lost with it"
    return [Finding("warning", what, f"with replication {REPLICAS}: {_alter(topic, '='.join(IN_SYNC))}")]


def _alter(topic: str, setting: str) -> str:
    return f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {setting}"


async def _effective_settings(admin: Any, topic: str) -> dict[str, str]:
    """The topic's own and otherwise the broker's. Raises `KafkaError` where it may not be asked."""
    [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    code, _, _, _, entries = response.resources[0]
    if code:
        raise for_code(code)
    return DEFAULT_SETTINGS | {entry[0]: entry[1] for entry in entries}


async def topic_settings(admin: Any, topic: str) -> dict[str, str]:
    """What was set for this topic itself."""
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    entries = [entry for response in responses for resource in response.resources for entry in resource[4]]
    return {entry[0]: entry[1] for entry in entries if entry[3] == TOPIC_SOURCE}
