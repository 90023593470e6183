"""The settings of topics, and which of them lose what a recommender must keep, or keep it from writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from xgr_stream.config import TopicNames
from xgr_stream.stream.connection import asked
from xgr_stream.stream.finding import Finding, Grade
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
    "retention.bytes": "-1",
    "retention.ms": str(7 * DAY_MS),
}
"""Kafka's, for brokers that tell only what was set."""
SETTINGS_TIMEOUT_S = 5.0
RECORD_BYTES = 1 << 20
"""What a record may take: aiokafka's own limit, and that of what clients send and workers take in."""

Check = Callable[[str, Mapping[str, str]], list[Finding]]


async def check_settings(
    admin: Any, topics: TopicNames, found: Mapping[str, Any], dedup_window_ms: int
) -> list[Finding]:
    findings = []
    checks: dict[str, Check] = {
        topics.events: _check_events,
        topics.requests: _check_requests,
        topics.responses: partial(_check_responses, window_ms=dedup_window_ms),
        topics.changelog: _check_changelog,
        topics.catalog: _check_catalog,
        topics.dead_letters: _check_dead_letters,
    }
    written_by_workers = (topics.responses, topics.changelog, topics.dead_letters)
    for topic, check in checks.items():
        if topic not in found:
            continue
        try:
            settings = await _effective_settings(admin, topic)
        except (KafkaError, OSError, IndexError, AttributeError) as error:
            what = f"the settings of {topic} can't be read: {error!r}"
            findings.append(Finding("warning", what, "allow DescribeConfigs on it"))
        else:
            findings += check(topic, settings)
            findings += _check_size(topic, settings, by_workers=topic in written_by_workers)
            findings += _check_in_sync(topic, settings, found[topic]["partitions"])
    return findings


def _check_events(topic: str, settings: Mapping[str, str]) -> list[Finding]:
    findings = [
        *_check_not_compacted(topic, settings, "error", "compaction keeps only each user's last event"),
        *_check_kept(topic, settings, DAY_MS, 7 * DAY_MS, "what a worker that is away for longer has not read is lost"),
    ]
    return findings or [Finding("ok", f"{topic} is not compacted, and keeps events for a day or more")]


def _check_requests(topic: str, settings: Mapping[str, str]) -> list[Finding]:
    findings = [
        *_check_not_compacted(topic, settings, "error", "compaction keeps only each user's last request"),
        *_check_kept(
            topic, settings, HOUR_MS, HOUR_MS, "what a worker that is away for longer was asked gets no answer"
        ),
    ]
    return findings or [Finding("ok", f"{topic} is not compacted, and keeps requests for an hour or more")]


def _check_responses(topic: str, settings: Mapping[str, str], *, window_ms: int) -> list[Finding]:
    otherwise = f"requests that come again within the dedup window of {window_ms} ms are answered twice"
    findings = [
        *_check_not_compacted(topic, settings, "warning", "compaction keeps only each user's last answer"),
        *_check_kept(topic, settings, window_ms, max(HOUR_MS, window_ms), otherwise),
    ]
    return findings or [Finding("ok", f"{topic} keeps answers for the dedup window")]


def _check_dead_letters(topic: str, settings: Mapping[str, str]) -> list[Finding]:
    otherwise = "brokers refuse it a letter without a key, at which a worker ends"
    return _check_not_compacted(topic, settings, "error", otherwise) or [Finding("ok", f"{topic} is not compacted")]


def _check_not_compacted(topic: str, settings: Mapping[str, str], grade: Grade, otherwise: str) -> list[Finding]:
    policy = settings["cleanup.policy"]
    if "compact" not in policy:
        return []
    return [Finding(grade, f"{topic} has cleanup.policy={policy}: {otherwise}", _alter(topic, "cleanup.policy=delete"))]


def _check_kept(
    topic: str, settings: Mapping[str, str], least_ms: int, wanted_ms: int, otherwise: str
) -> Iterator[Finding]:
    """Of a topic that is compacted alone, nothing is deleted by age or size."""
    if "delete" not in settings["cleanup.policy"]:
        return
    retention_ms, most = int(settings["retention.ms"]), int(settings["retention.bytes"])
    if 0 <= retention_ms < least_ms:  # -1: for ever
        what = f"{topic} keeps records for {retention_ms} ms: {otherwise}"
        yield Finding("warning", what, _alter(topic, f"retention.ms={wanted_ms}"))
    if most >= 0:  # -1: as long as retention.ms says
        what = (
            f"{topic} has retention.bytes={most}: nobody can tell for how long it keeps records; if that is too short"
        )
        yield Finding("warning", f"{what}, {otherwise}", _alter(topic, "retention.bytes=-1"))


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
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    [response] = await asked(lambda: admin.describe_configs([resource]), SETTINGS_TIMEOUT_S)
    code, _, _, _, entries = response.resources[0]
    if code:
        raise for_code(code)
    return DEFAULT_SETTINGS | {entry[0]: entry[1] for entry in entries}


async def topic_settings(admin: Any, topic: str) -> dict[str, str]:
    """What was set for this topic itself."""
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    entries = [entry for response in responses for resource in response.resources for entry in resource[4]]
    return {entry[0]: entry[1] for entry in entries if entry[3] == TOPIC_SOURCE}
