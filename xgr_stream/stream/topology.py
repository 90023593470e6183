"""The topics of a recommender: created where missing, and refused where they do not belong together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from xgr_stream.config import TopicNames
from xgr_stream.errors import TopologyError
from xgr_stream.stream.connection import Connection

logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 15.0
"""How long a topic just created may be without a leader."""

CHANGELOG_CONFIG = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}

REPLICAS = 3
"""Of a topic that is created, where there are as many brokers."""
IN_SYNC = "min.insync.replicas", "2"
"""Of a topic with so many replicas: what is acknowledged is on two brokers, and one may be away."""

TEN_YEARS_MS = 315_360_000_000
WEEK_MS = 604_800_000
CATALOG_CONFIG = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": str(TEN_YEARS_MS),
    "min.compaction.lag.ms": str(WEEK_MS),
}
"""A tombstone that is forgotten brings back an item of the base, so none is. Versions of the last week can be gone back
to, since all that they were made of is still there."""


def all_topics(topics: TopicNames) -> tuple[str, ...]:
    return (*co_partitioned(topics), topics.dead_letters, topics.catalog)


def co_partitioned(topics: TopicNames) -> tuple[str, ...]:
    """The topics whose partitions of one number belong together."""
    return (topics.events, topics.requests, topics.responses, topics.changelog)


def check_apart(topics: TopicNames, others: TopicNames) -> None:
    """Raise `TopologyError` if two recommenders would read or write the same topic. Dead letters are only written and
    a catalog's updates only read: for those they may have one."""
    harmless = ({topics.dead_letters} & {others.dead_letters}) | ({topics.catalog} & {others.catalog})
    shared = set(all_topics(topics)) & set(all_topics(others)) - harmless
    if shared:
        raise TopologyError(
            f"topics must be a recommender's own, and {_listed(sorted(shared))} are those of another one of this app: "
            "name others (StreamConfig.topics), or load a second model into the first one (challenger, "
            "recommender.models)"
        )


def check_sources(topics: TopicNames, sources: Iterable[str]) -> None:
    """Raise `TopologyError` if a recommender would be fed from a topic of its own: what it writes comes back to it, and
    multiplies for ever."""
    own = sorted(set(all_topics(topics)) & set(sources))
    if own:
        raise TopologyError(
            f"events must be topics of the application's with repartition=True, not {_listed(own)}, which this "
            "recommender uses itself: use its events topic without repartition, or name its topics otherwise "
            "(StreamConfig.topics)"
        )


async def check_sources_exist(connection: Connection, sources: Iterable[str]) -> None:
    """Raise `TopologyError` if one of them does not: a consumer that subscribes to it would not hear of it later."""
    admin = connection.admin()
    await admin.start()
    try:
        missing = sorted(set(sources) - set(await admin.list_topics()))
    finally:
        await admin.close()
    if missing:
        raise TopologyError(
            f"events must be topics that exist with repartition=True, and {_listed(missing)} are not there: create "
            "them, correct their names, or give topics that the app creates (app.topic(..., internal=True))"
        )


async def ensure_topics(connection: Connection, topics: TopicNames, partitions: int | None) -> int:
    """Create the topics that are missing, check those that are there, and return how many partitions they have.

    Missing ones get as many partitions as the others have, `partitions` where there are none yet; a warning tells of
    others than `partitions`. Raises `TopologyError` for unequal counts, and for missing topics if `partitions` is None.
    """
    admin = connection.admin()
    await admin.start()
    try:
        counts = await _counts(admin, topics)
        present = {counts[name] for name in co_partitioned(topics) if name in counts}
        missing = [name for name in all_topics(topics) if name not in counts]
        if missing:
            if partitions is None:
                raise TopologyError(
                    f"topics must exist, and {_listed(missing)} do not: create them, the catalog's with one "
                    "partition, all others but the dead letters' with equal counts, or let the worker do it "
                    "(StreamConfig.partitions)"
                )
            await _create(admin, missing, max(present, default=partitions), topics)
            counts = await _counts_when_ready(admin, topics)
        check_counts(topics, counts)
        number = counts[topics.events]
        if partitions not in (None, number):
            logger.warning(
                "%s has %d partitions, and its sisters too: they were there, and are not changed to the %d that "
                "StreamConfig.partitions (--partitions) asks for",
                *(topics.events, number, partitions),
            )
        return number
    finally:
        await admin.close()


def check_counts(topics: TopicNames, counts: Mapping[str, int]) -> None:
    """Raise `TopologyError` unless the topics that belong together have equal partition counts, and the catalog's one
    partition."""
    found = {name: counts[name] for name in co_partitioned(topics)}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in found.items())
        raise TopologyError(
            f"partition counts must be equal, but {listed}: a user's events, requests, responses and history meet by "
            "partition number. Recreate the ones that differ with the events topic's count, or name other topics "
            "(TopicNames)"
        )
    if counts[topics.catalog] != 1:
        raise TopologyError(
            f"{topics.catalog} must have one partition, and it has {counts[topics.catalog]}: a catalog's version is a "
            "place in it. Recreate it, or name another topic (TopicNames.catalog)"
        )


def check_assignment(topics: TopicNames, assigned: Iterable[tuple[str, int]]) -> frozenset[int]:
    """The partition numbers of an assignment of (topic, partition) pairs; others than ours may be among them.

    Raises `TopologyError` if the events and the requests of some partition were given to different workers.
    """
    numbers: dict[str, set[int]] = {topics.events: set(), topics.requests: set()}
    for topic, partition in assigned:
        if topic in numbers:
            numbers[topic].add(partition)
    events, requests = numbers[topics.events], numbers[topics.requests]
    if events != requests:
        raise TopologyError(
            f"the same partitions of {topics.events} and {topics.requests} must be assigned to a worker, but this one "
            f"got {sorted(events)} and {sorted(requests)}: every member of the consumer group must subscribe to both "
            "topics and use an assignor that keeps equal numbers together (aiokafka: RangePartitionAssignor; Faust: "
            "its own, which needs table_standby_replicas of at least 1)"
        )
    return frozenset(events)


async def _counts(admin: AIOKafkaAdminClient, topics: TopicNames) -> dict[str, int]:
    """Topic → partitions, of our topics that exist. Asks for all names first: to ask for one may create it."""
    existing = set(await admin.list_topics())
    ours = [name for name in all_topics(topics) if name in existing]
    if not ours:
        return {}
    return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics(ours)}


async def _create(admin: AIOKafkaAdminClient, missing: Iterable[str], partitions: int, topics: TopicNames) -> None:
    replicas = min(REPLICAS, len((await admin.describe_cluster())["brokers"]))
    settings = {topics.changelog: CHANGELOG_CONFIG, topics.catalog: CATALOG_CONFIG}
    new = [
        NewTopic(
            name,
            1 if name in (topics.dead_letters, topics.catalog) else partitions,
            replicas,
            topic_configs=settings.get(name, {}) | dict([IN_SYNC] if replicas == REPLICAS else ()),
        )
        for name in missing
    ]
    response = await admin.create_topics(new)
    for name, code, *message in response.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            reason = ": ".join(filter(None, [for_code(code).__name__, *message]))
            raise TopologyError(f"topic {name} is missing and could not be created ({reason}): create it")


async def _counts_when_ready(admin: AIOKafkaAdminClient, topics: TopicNames) -> dict[str, int]:
    names = all_topics(topics)
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                described = await admin.describe_topics(list(names))
                if all(map(_ready, described)):
                    return {topic["topic"]: len(topic["partitions"]) for topic in described}
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TopologyError(
            f"topics must be ready within {READY_TIMEOUT_S:.0f} s of their creation; {_listed(names)} are not all"
        ) from None


def _ready(topic: Mapping[str, Any]) -> bool:
    partitions = topic["partitions"]
    return topic["error_code"] == 0 and bool(partitions) and all(p["leader"] >= 0 for p in partitions)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
