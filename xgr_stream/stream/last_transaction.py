"""How a transactional id's last transaction ended, by its coordinator, and whether it is open, by the leaders of what
it wrote to. aiokafka has no requests that ask for it.

A coordinator forgets how it ended when the id is taken over. So whoever does leaves a note of it, in what the
coordinator keeps of an id and tells everybody: the transactions' timeout, whose last bit is one if it was committed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    LeaderNotAvailableError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

NOT_FOUND = 105
"""TRANSACTIONAL_ID_NOT_FOUND."""
UNSTABLE_OFFSET_COMMIT = 88
ASKED, ASK_AGAIN_S = 3, 0.5
"""Times that a broker is asked which does not know the question: one that is just starting may not say what it does."""

Topics = dict[str, list[int]]
"""Topic → numbers of partitions."""
_PARTITIONS = CompactArray(
    ("name", CompactString("utf-8")), ("partition_indexes", CompactArray(Int32)), ("tags", TaggedFields)
)


class _TransactionsResponse(Response):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transaction_states",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", CompactString("utf-8")),
                ("state", CompactString("utf-8")),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(
                        ("topic", CompactString("utf-8")),
                        ("partitions", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TransactionsStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 65
    API_VERSION = 0
    RESPONSE_TYPE = _TransactionsResponse
    SCHEMA = Schema(("transactional_ids", CompactArray(CompactString("utf-8"))), ("tags", TaggedFields))


class _DescribeTransactions(Request[_TransactionsStruct]):  # type: ignore[misc]
    API_KEY = 65

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, request_struct_class: type[_TransactionsStruct]) -> _TransactionsStruct:
        return request_struct_class([self._name], {})


def _listed(topics: Topics) -> list[tuple[str, list[int], dict[int, bytes]]]:
    """As `_PARTITIONS`."""
    return [(topic, numbers, {}) for topic, numbers in topics.items()]


class _ProducersResponse(Response):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition_index", Int32),
                        ("error_code", Int16),
                        ("error_message", CompactString("utf-8")),
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
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _ProducersStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 61
    API_VERSION = 0
    RESPONSE_TYPE = _ProducersResponse
    SCHEMA = Schema(("topics", _PARTITIONS), ("tags", TaggedFields))


class _DescribeProducers(Request[_ProducersStruct]):  # type: ignore[misc]
    API_KEY = 61

    def __init__(self, topics: Topics) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_ProducersStruct]) -> _ProducersStruct:
        return request_struct_class(_listed(self._topics), {})


class _OffsetsResponse(Response):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition_index", Int32),
                        ("committed_offset", Int64),
                        ("committed_leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("error_code", Int16),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )


class _OffsetsStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = _OffsetsResponse
    SCHEMA = Schema(
        ("group_id", CompactString("utf-8")),
        ("topics", _PARTITIONS),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class _FetchStableOffsets(Request[_OffsetsStruct]):  # type: ignore[misc]
    """aiokafka's own can't ask whether a transaction that commits offsets is open: that came with version 7."""

    API_KEY = 9

    def __init__(self, group_id: str, topics: Topics) -> None:
        self._group_id = group_id
        self._topics = topics

    def build(self, request_struct_class: type[_OffsetsStruct]) -> _OffsetsStruct:
        return request_struct_class(self._group_id, _listed(self._topics), True, {})


class LastTransaction(NamedTuple):
    """By the coordinator, before its id is taken over."""

    committed: bool
    producer_id: int
    producer_epoch: int

    def ended_before(self, producer_id: int, producer_epoch: int) -> bool:
        """Whether it was the last one when this producer took the id over. One that was open then, of a former owner
        who did not know yet, was aborted, which takes an epoch."""
        return (producer_id, producer_epoch) == (self.producer_id, self.producer_epoch + 1)


def timeout_ms(timeout_s: float, *, last_committed: bool) -> int:
    """The timeout to take an id over with: at most that long, and the note."""
    return (round(timeout_s * 1000) - 1) // 2 * 2 + last_committed


async def last_transaction(client: AIOKafkaClient, name: str) -> LastTransaction | None:
    """None: there was none, or the broker does not tell. Raises `KafkaError`."""
    for left in reversed(range(ASKED)):
        try:
            coordinator = await client.coordinator_lookup(CoordinationType.TRANSACTION, name)
            response = await client.send(coordinator, _DescribeTransactions(name))
            break
        except IncompatibleBrokerVersion:
            if not left:
                return None
            await asyncio.sleep(ASK_AGAIN_S)
        except TransactionalIdAuthorizationFailed:  # that is said by who takes it over
            return None
    [(code, _, state, timeout, _, producer_id, producer_epoch, *_)] = response.transaction_states
    if code == NOT_FOUND:
        return None
    if code:
        raise for_code(code)
    # One that is open is aborted by whoever takes the id over; nobody has begun one since where the state is "Empty".
    committed = timeout % 2 == 1 if state == "Empty" else state in ("PrepareCommit", "CompleteCommit")
    return LastTransaction(committed, producer_id, producer_epoch)


async def is_open(client: AIOKafkaClient, producer_id: int, partitions: Iterable[TopicPartition]) -> bool:
    """Whether this producer has a transaction open in one of these. Where the broker won't tell, that is taken for a
    no. Raises `KafkaError`."""
    by_leader: dict[int, Topics] = defaultdict(lambda: defaultdict(list))
    for tp in partitions:
        leader = client.cluster.leader_for_partition(tp)
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(tp)
        by_leader[leader][tp.topic].append(tp.partition)
    found = [client.send(leader, _DescribeProducers(topics)) for leader, topics in by_leader.items()]
    for response in await asyncio.gather(*found):
        for _, states, _ in response.topics:
            for _, code, _, producers, _ in states:
                if code and code != TopicAuthorizationFailedError.errno:
                    raise for_code(code)
                if any(producer == producer_id and start >= 0 for producer, *_, start, _ in producers):
                    return True
    return False


async def are_offsets_open(client: AIOKafkaClient, group_id: str, topics: Topics) -> bool:
    """Whether a transaction that commits the group's offsets of these is open. Raises `KafkaError`."""
    coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group_id)
    response = await client.send(coordinator, _FetchStableOffsets(group_id, topics))
    codes = {response.error_code} | {code for _, states, _ in response.topics for *_, code, _ in states}
    for code in codes - {0, UNSTABLE_OFFSET_COMMIT}:
        raise for_code(code)
    return UNSTABLE_OFFSET_COMMIT in codes
