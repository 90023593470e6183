"""Which consumer groups have workers at the moment."""

from __future__ import annotations

from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocol

from xgr_stream.config import TopicNames


async def working_groups(admin: AIOKafkaAdminClient, topics: TopicNames) -> list[str]:
    """The groups with a member that reads both events and requests, as workers alone do: others may read either. Of a
    group that is being divided anew the brokers do not tell; it counts if it has committed offsets of the events."""
    return [
        group
        for group, kind in sorted(await admin.list_consumer_groups())
        if kind == ConsumerProtocol.PROTOCOL_TYPE and await _works(admin, group, topics)
    ]


async def _works(admin: AIOKafkaAdminClient, group: str, topics: TopicNames) -> bool:
    # One at a time: aiokafka 0.14 reads the answer of DescribeGroups v3 as v2, which goes well for one group.
    [response] = await admin.describe_consumer_groups([group])
    [described] = response.to_object()["groups"]
    if described["state"] == "Stable":
        return any({topics.events, topics.requests} <= _subscription(member) for member in described["members"])
    if not described["members"]:
        return False
    return any(tp.topic == topics.events for tp in await admin.list_consumer_group_offsets(group))


def _subscription(member: dict[str, Any]) -> set[str]:
    return set(ConsumerProtocol.METADATA.decode(member["member_metadata"]).subscription)
