"""A publisher that commits what records cause, and their offsets, in Kafka transactions.

Each partition has a producer and a transactional id of its own, named by the group and the partition. aiokafka commits
a transaction's offsets without the group's generation, so nothing but the id tells a worker that was given the
partition from one that has lost it and does not know: the new owner's producer takes the id over, which fences the
former one and aborts what it had open, before the committed offsets and the changelog are read. An id for each worker
would fence nobody, and what a killed one left open would hold readers back until its time is over.

A broker may end a transaction and not say so in the partitions that it wrote to: Apache Kafka 4.3 takes one without a
leader for deleted, as all are while its only broker stops, or starts again after it was killed. There it stays open, no
reader of what is committed comes past it, and the id's next transaction ends it, as itself. So whoever takes an id over
ends its last transaction again, as it ended, where it is open; and each transaction covers what the one before it wrote
to, so that no part of that ends in another way than the rest.

A transaction either ends within its time, or the partition is given up, whatever the reason, and begun anew from what
was committed: the same way for a fenced worker, a transaction that failed and one of which nobody knows how it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    InvalidTopicError,
    InvalidTransactionTimeout,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.structs import OffsetAndMetadata

from xgr_stream.config import TopicNames, TransactionConfig
from xgr_stream.errors import ConfigError, Fenced
from xgr_stream.stream.connection import RETRY_AFTER_S, Connection, passes, stop_client
from xgr_stream.stream.copies import Copies
from xgr_stream.stream.last_transaction import are_offsets_open, is_open, last_transaction, timeout_ms
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.progress import Progress
from xgr_stream.stream.publisher import Publisher
from xgr_stream.stream.transaction import FENCED, Writer

logger = logging.getLogger(__name__)

MAX_FAILURES = 5
"""Transactions of a partition that fail one after the other before the worker gives up."""

REFUSALS = (
    *(ClusterAuthorizationFailedError, GroupAuthorizationFailedError, TopicAuthorizationFailedError),
    *(TransactionalIdAuthorizationFailed, InvalidTopicError, MessageSizeTooLargeError, RecordListTooLargeError),
)
"""What the broker would refuse again."""


class TransactionalPublisher(Publisher):
    """Polls the processor and commits its outputs, each partition's by themselves. All on the event loop's thread.

    `open` before a partition is assigned to the processor, `close` when it is revoked. `on_lost(number, fenced)` is
    called when a partition was closed since a transaction of it was not committed; `fenced`: another worker writes
    there now.
    """

    def __init__(
        self,
        config: TransactionConfig,
        connection: Connection,
        *,
        group_id: str,
        topics: TopicNames,
        on_lost: Callable[[int, bool], None],
        **options: Any,
    ) -> None:
        """`options`: a `Publisher`'s; its producer writes nothing of the processor's."""
        super().__init__(**options)
        self.config = config
        self.group_id = group_id
        self.topics = topics.events, topics.requests
        self.copies = Copies(self._producer, self._metrics)
        self._names = topics
        self._connection = connection
        self._on_lost = on_lost
        self._writers: dict[int, Writer] = {}
        self._failures: Counter[int] = Counter()

    # Partitions

    async def open(self, number: int) -> dict[str, Progress]:
        """Take a partition over from whoever had it, and say where to go on, in as many attempts as the brokers make
        necessary. Raises `ConfigError` for brokers that won't have it."""
        while True:
            try:
                producer = await self._take_over(number)
                try:
                    progress = await self._committed(number)
                except BaseException:
                    await stop_client(producer)
                    raise
                break
            except KafkaError as error:
                # aiokafka wraps some of what passes in the base class; two that take over at once fence each other.
                if not (passes(error) or isinstance(error, FENCED) or type(error) is KafkaError):
                    raise
                logger.warning("taking over partition %d failed (%r); trying again", number, error)
            await asyncio.sleep(RETRY_AFTER_S)
        self._writers[number] = Writer(self, number, producer, progress)
        return progress

    def close(self, number: int) -> None:
        """Write nothing of a partition any more. What was not committed is aborted: by us if we can, else by its next
        owner."""
        writer = self._writers.pop(number, None)
        if writer is not None:
            self._spawn(writer.close())
            for output in [output for output in self._waiting if output.partition.number == number]:
                self._forget(output)

    async def stop(self) -> None:
        """Close all partitions, within a bound."""
        for number in list(self._writers):
            self.close(number)
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def commit(self, timeout_s: float) -> None:
        """Commit what is done, offsets that nothing is written for too; it goes on if it takes longer."""
        waits = [asyncio.create_task(writer.flush()) for writer in self._writers.values()]
        if waits:
            await asyncio.wait(waits, timeout=timeout_s)
            for wait in waits:
                wait.cancel()

    async def _take_over(self, number: int) -> AIOKafkaProducer:
        """A started producer that has fenced all others of the partition, none of which has a transaction open."""
        name = transactional_id(self.group_id, self.topics[0], number)
        while True:
            last = await last_transaction(self._producer.client, name)
            committed = last is not None and last.committed
            producer = await start_producer(self._connection, name, self.config.timeout_s, last_committed=committed)
            try:
                if last is None or not await self._is_open(producer, number):
                    return producer
                manager = producer._txn_manager
                untouched = last.ended_before(manager.producer_id, manager.producer_epoch)
                await self._end_again(producer, number, committed=committed and untouched)
            except BaseException:
                await stop_client(producer)
                raise
            await stop_client(producer)  # the broker may have left that open, too

    async def _written_to(self, producer: AIOKafkaProducer, number: int) -> list[TopicPartition]:
        """Where a transaction of the partition may have written, but for copies, and letters where nobody leads: these
        may wait, and the partition may not."""
        topics = self._names
        for topic in (topics.changelog, topics.responses):
            await producer.partitions_for(topic)
        await producer.partitions_for(topics.dead_letters)
        letters = producer.client.cluster.available_partitions_for_topic(topics.dead_letters) or ()
        return [
            *(TopicPartition(topic, number) for topic in (topics.changelog, topics.responses)),
            *(TopicPartition(topics.dead_letters, letter) for letter in letters),
        ]

    async def _is_open(self, producer: AIOKafkaProducer, number: int) -> bool:
        """Whether the last transaction is, though its coordinator has ended it."""
        offsets = {topic: [number] for topic in self.topics}
        producer_id = producer._txn_manager.producer_id
        return await are_offsets_open(producer.client, self.group_id, offsets) or await is_open(
            producer.client, producer_id, await self._written_to(producer, number)
        )

    async def _end_again(self, producer: AIOKafkaProducer, number: int, *, committed: bool) -> None:
        """By an empty one over the same partitions that ends alike."""
        await producer.begin_transaction()
        while not await producer._sender._do_add_offsets_to_txn(self.group_id):
            """It has waited before it says so."""
        for tp in await self._written_to(producer, number):
            producer._txn_manager.maybe_add_partition_to_txn(tp)
        await (producer.commit_transaction() if committed else producer.abort_transaction())

    async def _committed(self, number: int) -> dict[str, Progress]:
        """Where the group is in both topics of a partition; at their beginning where nothing is committed."""
        partitions = [TopicPartition(topic, number) for topic in self.topics]
        consumer = self._connection.consumer(group_id=self.group_id)
        try:
            await consumer.start()
            committed = await consumer._coordinator.fetch_committed_offsets(partitions)
            begins = await consumer.beginning_offsets(partitions)
        finally:
            await stop_client(consumer)
        found = {}
        for tp in partitions:
            offset, metadata = committed.get(tp) or OffsetAndMetadata(-1, "")
            found[tp.topic] = Progress(begins[tp]) if offset < 0 else Progress.read(offset, metadata)
        return found

    # Outputs

    def _send(self, output: Output) -> None:
        self._expect(output, 1)
        copies = [produce.topic for produce in output.produces if not produce.required]
        if all(map(self.copies.known, copies)):
            self._put(output)
        else:
            self._spawn(self._put_later(output, copies))

    async def _put_later(self, output: Output, topics: Sequence[str]) -> None:
        for topic in topics:
            await self.copies.look_up(topic)
        self._put(output)

    def _put(self, output: Output) -> None:
        writer = self._writers.get(output.partition.number)
        if writer is None or not output.partition.held:
            self._forget(output)
        else:
            writer.put(output)

    # For the writers

    def progress(self, number: int, outputs: Collection[Output]) -> dict[str, Progress]:
        """How far a partition would be done if these were durable too."""
        return self._processor.progress(number, outputs)

    def hurry(self, number: int, offset: int) -> None:
        """Have the request of this offset answered: a partition's answers can't be further ahead of it."""
        self._processor.hurry(number, offset)

    def committed(self, writer: Writer, outputs: Sequence[Output]) -> None:
        """A writer's transaction is committed."""
        self._failures.pop(writer.number, None)
        self._metrics.transactions.labels("committed").inc()
        done = [output for output in outputs if output in self._waiting]
        for output in done:
            self._forget(output)
        self._durable(done)

    def failed(self, writer: Writer, error: Exception, copies: Collection[str]) -> None:
        """A writer's transaction is not, or nobody knows: the partition is given up, or the worker stops. `copies`: the
        `reply_to` topics that it wrote to."""
        number = writer.number
        if self._writers.get(number) is not writer:
            return  # it was closed meanwhile
        fenced = isinstance(error, FENCED)
        self._metrics.transactions.labels("fenced" if fenced else "aborted").inc()
        logger.warning("partition %d is given up, its transaction was not committed: %r", number, error)
        self.close(number)
        if copies and not fenced:
            # One of their topics may be the reason, whatever the error says: it is no failure of the partition's.
            self.copies.refuse(copies)
            self._on_lost(number, False)
            return
        self._failures[number] += 1
        if self._failures[number] >= MAX_FAILURES:
            self._on_failure(self._hopeless(number, error, fenced))
        elif isinstance(error, REFUSALS):
            self._on_failure(error)
        else:
            self._on_lost(number, fenced)

    def broke(self, error: BaseException) -> None:
        """A writer has ended by a mistake of ours: its partition would stand still."""
        self._on_failure(error)

    def _hopeless(self, number: int, error: Exception, fenced: bool) -> Exception:
        if not fenced:
            return error
        return Fenced(
            f"the transactions of partition {number} were fenced {MAX_FAILURES} times in a row: does another "
            f"deployment run in the group {self.group_id}, or do transactions take longer than the broker lets them?"
        )


def transactional_id(group_id: str, events: str, number: int) -> str:
    """The group's and the partition's, so that whoever is given the partition fences whoever had it; of no other group
    and topic, since a topic's name has no '/'."""
    return f"{group_id}/{events}/{number}"


async def start_producer(
    connection: Connection, name: str, timeout_s: float, *, last_committed: bool = False
) -> AIOKafkaProducer:
    """Raises `ConfigError` where trying again won't help, and `KafkaError` else. `last_committed`: whether the id's
    last transaction was, for those who take it over before there is another."""
    try:
        return await connection.start_transactional_producer(name, timeout_ms(timeout_s, last_committed=last_committed))
    except InvalidTransactionTimeout as error:
        raise ConfigError(
            f"the transactions' timeout_s must be at most the broker's transaction.max.timeout.ms, not {timeout_s:g} s"
        ) from error
    except TransactionalIdAuthorizationFailed as error:
        raise ConfigError(
            f"the worker may not use the transactional id {name}: allow it Write and Describe on transactional ids "
            "that begin with its group's name"
        ) from error
    except IncompatibleBrokerVersion as error:
        raise ConfigError(f"this broker has no transactions ({error}): set none, or use another broker") from error
