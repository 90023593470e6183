"""A consumer as a member of its group: its place there, who takes it away, and what keeps it from having one."""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    KafkaError,
    UnknownMemberIdError,
)
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest

from xgr_stream.errors import ConfigError, Fenced
from xgr_stream.stream.connection import passes

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""Between two times that a consumer outside of its group is asked why."""
PATIENCE_S = 60.0
"""How long it may be kept out for a reason that may pass."""


class Membership(NamedTuple):
    """A consumer's place in its group at one assignment."""

    member: str
    """What the group calls it: another name after the group had given it up."""
    generation: int
    """Of the group, one more with every assignment."""

    def follows(self, last: Membership | None) -> bool:
        """Whether there was no assignment between the two that this consumer did not get: then nobody else can have had
        what it had and has again."""
        return last is not None and (self.member, self.generation) == (last.member, last.generation + 1)


def membership(consumer: AIOKafkaConsumer) -> Membership:
    """Of a consumer that was just given partitions."""
    return Membership(consumer._coordinator.member_id, consumer._coordinator.generation)


class Admission:
    """Why a consumer is not in its group. aiokafka 0.14 tells only who asks for records, and waits until somebody does;
    a consumer without partitions is not asked for any."""

    def __init__(self, consumer: AIOKafkaConsumer, group_id: str) -> None:
        self._consumer = consumer
        self._group_id = group_id
        self._refused_since: float | None = None

    def check(self) -> None:
        """Raise what keeps it out for good, `ConfigError` where the operator can mend it; have aiokafka try again after
        what may pass, which it does at once: not to be called all the time."""
        coordinator: Any = self._consumer._coordinator
        if coordinator is None:
            return  # not started yet
        now = time.monotonic()
        try:
            coordinator.check_errors()
        except GroupAuthorizationFailedError as error:
            raise ConfigError(
                f"the worker may not be in group {self._group_id}: allow it Read on that group"
            ) from error
        except InvalidSessionTimeoutError as error:
            raise ConfigError(
                f"the session timeout must be between the broker's group.min.session.timeout.ms and "
                f"group.max.session.timeout.ms, not {coordinator._session_timeout_ms} ms"
            ) from error
        except (InconsistentGroupProtocolError, InvalidGroupIdError) as error:
            raise ConfigError(
                f"the group must be one that workers of this driver alone are in, not {self._group_id}: {error}"
            ) from error
        except KafkaError as error:
            # What aiokafka knows no better it raises as the base class, a rebalance that goes on among it.
            ended = coordinator._coordination_task.done()
            if ended or not (passes(error) or type(error) is KafkaError):
                raise
            self._refused_since = self._refused_since or now
            if now - self._refused_since > PATIENCE_S:
                raise
            logger.warning("not in group %s (%s); trying again", self._group_id, error)
        else:
            self._refused_since = None


def look_for_topics(consumer: AIOKafkaConsumer) -> None:
    """Ask for the metadata of topics that are subscribed to and have no partitions, as far as the consumer knows: a
    broker that has just started may say so. To be called while it runs.

    Who leads the group then gives out none, nobody reads anything, nothing fails, and aiokafka 0.14 asks again after
    five minutes. Once it knows better, it has the group divided anew.
    """
    subscription = consumer._subscription.subscription
    if subscription is not None and not all(map(consumer._client.cluster.partitions_for_topic, subscription.topics)):
        consumer._client.force_metadata_update()


def end_when_taken_over(consumer: AIOKafkaConsumer, instance_id: str, session_timeout_ms: int) -> None:
    """Have a static member fail with `Fenced` once another one has joined under its name. aiokafka joins again, which
    takes the name from the other: so it would go on between the two, and neither would serve.

    Its heartbeats do not name the instance, so that the group calls it unknown, as one that was silent for too long.
    """
    client = consumer._client
    send, known_at = client.send, float("-inf")

    async def watching(node_id: int, request: Any, **options: Any) -> Any:
        nonlocal known_at
        asked_at = time.monotonic()  # the answer may lie unread for longer than a session
        response = await send(node_id, request, **options)
        if isinstance(request, HeartbeatRequest | JoinGroupRequest):
            code = getattr(response, "error_code", 0)
            silent = time.monotonic() - known_at
            if not code:
                known_at = asked_at
            elif code == UnknownMemberIdError.errno and silent * 1000 < session_timeout_ms:
                raise Fenced(
                    f"another worker has joined the group as {instance_id}, the name of this one (--instance): each "
                    "must have a name of its own, and one that takes another's place start when that one has ended"
                )
        return response

    client.send = watching
