"""How a transactional id's last transaction ended, by its coordinator, and whether it is open, by the leaders of what
it wrote to.

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

from xgr_stream.stream.kafka_requests import DescribeProducers, DescribeTransactions, FetchStableOffsets, Topics

NOT_FOUND = 105
"""TRANSACTIONAL_ID_NOT_FOUND."""
UNSTABLE_OFFSET_COMMIT = 88
ASKED, ASK_AGAIN_S = 3, 0.5
"""Times that a broker is asked which does not know the question: one that is just starting may not say what it does."""


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
            response = await client.send(coordinator, DescribeTransactions(name))
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
    found = [client.send(leader, DescribeProducers(topics)) for leader, topics in by_leader.items()]
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
    response = await client.send(coordinator, FetchStableOffsets(group_id, topics))
    codes = {response.error_code} | {code for _, states, _ in response.topics for *_, code, _ in states}
    for code in codes - {0, UNSTABLE_OFFSET_COMMIT}:
        raise for_code(code)
    return UNSTABLE_OFFSET_COMMIT in codes
