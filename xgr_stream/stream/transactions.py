"""A publisher that commits what records cause, and their offsets, in Kafka transactions.

Each partition has a producer and a transactional id of its own, named by the group and the partition. aiokafka commits
a transaction's offsets without the group's generation, so nothing but the id tells a worker that was given the
partition from one that has lost it and does not know: the new owner's producer takes the id over, which fences the
former one and aborts what it had open, before the committed offsets and the changelog are read. An id for each worker
would fence nobody, and what a killed one left open would hold readers back until its time is over.

A broker may end a transaction and not say so in the partitions that it wrote to: Apache Kafka 4.3 takes one without a
leader for deleted, as all are while its only broker stops. There it stays open, no reader of what is committed comes
past it, and nobody will end it. So whoever takes an id over ends its last transaction again, as it ended.

A transaction either ends within its time, or the partition is given up, whatever the reason, and begun anew from what
was committed: the same way for a fenced worker, a transaction that failed and one of which nobody knows how it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
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
from xgr_stream.stream.last_transaction import was_committed
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.progress import Progress
from xgr_stream.stream.publisher import Publisher
from xgr_stream.stream.transaction import FENCED, Writer

logger = logging.getLogger(__name__)

ENDING_TIMEOUT_S = 1.0
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
        self._how_ended: dict[int, bool] = {}
        """Whether the last transaction was committed, of partitions where it could not be ended again yet."""
        self._endings: set[asyncio.Task[None]] = set()
        """Of last transactions, of partitions that are being taken over or were until a moment ago."""

    # Partitions

    async def open(self, number: int) -> dict[str, Progress]:
        """Take a partition over from whoever had it, and say where to go on, in as many attempts as the brokers make
        necessary. Raises `ConfigError` for brokers that won't have it."""
        while True:
            try:
                await self._not_broken_off(self._end_again(number))
                producer = await self._start_producer(number)
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
        self._how_ended.pop(number, None)
        writer = self._writers.pop(number, None)
        if writer is not None:
            self._spawn(writer.close())
            for output in [output for output in self._waiting if output.partition.number == number]:
                self._forget(output)

    async def settle(self, timeout_s: float) -> None:
        """Let what must not be broken off end, for so long at most."""
        if self._endings:
            await asyncio.wait(self._endings, timeout=timeout_s)

    async def _not_broken_off(self, ending: Coroutine[Any, Any, None]) -> None:
        """It goes on if this is cancelled: in between, nobody else could tell how the last transaction had ended."""
        task = asyncio.create_task(ending)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def stop(self) -> None:
        """Close all partitions, within a bound."""
        for number in list(self._writers):
            self.close(number)
        await self.settle(ENDING_TIMEOUT_S)
        for ending in self._endings:
            ending.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def commit(self, timeout_s: float) -> None:
        """Commit what is done, offsets that nothing is written for too; it goes on if it takes longer."""
        waits = [asyncio.create_task(writer.flush()) for writer in self._writers.values()]
        if waits:
            await asyncio.wait(waits, timeout=timeout_s)
            for wait in waits:
                wait.cancel()

    async def _start_producer(self, number: int) -> AIOKafkaProducer:
        name = transactional_id(self.group_id, self.topics[0], number)
        return await start_producer(self._connection, name, self.config.timeout_s)

    async def _end_again(self, number: int) -> None:
        """Where the partition's last transaction may be open still, end it: by an empty one that ends alike. Whoever
        takes the id over next does so when that is done everywhere."""
        name = transactional_id(self.group_id, self.topics[0], number)
        committed = self._how_ended.get(number)
        if committed is None:
            committed = await was_committed(self._producer.client, name)
        if committed is None:
            return
        self._how_ended[number] = committed  # nobody can tell from here on
        producer = await self._start_producer(number)
        try:
            letters = await producer.partitions_for(self._names.dead_letters)
            await producer.begin_transaction()
            while not await producer._sender._do_add_offsets_to_txn(self.group_id):
                """It has waited before it says so."""
            for topic in (self._names.changelog, self._names.responses):
                producer._txn_manager.maybe_add_partition_to_txn(TopicPartition(topic, number))
            for letter in letters:
                producer._txn_manager.maybe_add_partition_to_txn(TopicPartition(self._names.dead_letters, letter))
            await (producer.commit_transaction() if committed else producer.abort_transaction())
            self._how_ended.pop(number, None)
        finally:
            await stop_client(producer)

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

    # What a publisher does otherwise

    async def run(self) -> None:
        """Until cancelled. Partitions are closed by `stop`."""
        while True:
            await self._wake_or_deadline()
            self._awake.clear()
            for output in self._processor.poll():
                self._send(output)

    def _send(self, output: Output) -> None:
        self._waiting[output] = 1
        self._unpublished[output.topic] += len(output.offsets)
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


async def start_producer(connection: Connection, name: str, timeout_s: float) -> AIOKafkaProducer:
    """Raises `ConfigError` where trying again won't help, and `KafkaError` else."""
    try:
        return await connection.start_transactional_producer(name, timeout_s)
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
