"""The transactions of one partition."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata

from xgr_stream.stream.connection import stop_client
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.progress import MAX_AHEAD, Progress
from xgr_stream.stream.records import Produce

if TYPE_CHECKING:
    from xgr_stream.stream.transactions import TransactionalPublisher

FENCED = (ProducerFenced, InvalidProducerEpoch)
"""Another producer has the transactional id, or the broker has given up a transaction that took too long."""
MAX_RECORDS = 1_000
"""As many don't wait for the commit interval to be over."""
ABORT_TIMEOUT_S = 1.0

Lane = tuple[str, int | None]


class Writer:
    """One transaction after the other, each with all that is ready when it begins; how much that is, is bounded by what
    a partition may have open. Of no use any more after the first that fails."""

    def __init__(
        self,
        publisher: TransactionalPublisher,
        number: int,
        producer: AIOKafkaProducer,
        committed: dict[str, Progress],
    ) -> None:
        self.number = number
        self._publisher = publisher
        self._producer = producer
        self._committed = committed
        self._outputs: list[Output] = []
        self._num_records = 0
        """That these hold."""
        self._due = asyncio.Event()
        self._urgent = asyncio.Event()
        """The commit interval need not be waited for."""
        self._idle = asyncio.Event()
        self._abortable = False
        """Whether a transaction was begun and neither failed nor is being committed."""
        self._copied: set[str] = set()
        """The `reply_to` topics that the last one wrote to."""
        self._wrote: set[TopicPartition] = set()
        """The other partitions that it wrote to."""
        self._task = asyncio.create_task(self._run(), name=f"xgr-transactions-{number}")
        self._task.add_done_callback(self._on_done)

    def put(self, output: Output) -> None:
        self._outputs.append(output)
        self._num_records += len(output.produces)
        self._due.set()
        if output.topic == self._publisher.topics[1] or self._num_records >= MAX_RECORDS:
            self._urgent.set()

    async def flush(self) -> None:
        """Commit what is done, also where nothing is to be written for it."""
        self._idle.clear()
        self._due.set()
        self._urgent.set()
        await self._idle.wait()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._idle.set()
        if self._abortable:
            # aiokafka asserts that a transaction which has just failed by itself is not aborted.
            with contextlib.suppress(KafkaError, TimeoutError, AssertionError):
                async with asyncio.timeout(ABORT_TIMEOUT_S):
                    await self._producer.abort_transaction()
        await stop_client(self._producer)

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._publisher.config.commit_interval_ms / 1000):
                    await self._urgent.wait()
            self._due.clear()
            self._urgent.clear()
            outputs, progress = self._ready()
            if outputs or progress != self._committed:
                try:
                    async with asyncio.timeout(self._publisher.config.timeout_s):
                        await self._transact(outputs, progress)
                except Exception as error:  # noqa: BLE001  aiokafka's own assertions fail too, once something has
                    self._abortable = False
                    self._publisher.failed(self, error, self._copied)
                    return
                self._committed = progress
                self._publisher.copies.written(self._copied)
                self._publisher.committed(self, outputs)
            if not self._due.is_set():
                self._idle.set()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._publisher.broke(error)

    def _ready(self) -> tuple[list[Output], dict[str, Progress]]:
        """What the next transaction holds. Answers too far ahead of a request that is still open stay behind, since a
        commit could not tell the next owner of them; it waits no longer then."""
        progress = self._publisher.progress(self.number, self._outputs)
        limits: dict[str | None, int] = {topic: offset + MAX_AHEAD for topic, (offset, _) in progress.items()}
        ready: list[Output] = []
        behind: list[Output] = []
        for output in self._outputs:
            last = output.offsets[-1] if output.offsets else -1
            (behind if last >= limits.get(output.topic, last + 1) else ready).append(output)
        requests = self._publisher.topics[1]
        if any(output.topic == requests for output in behind):
            self._publisher.hurry(self.number, progress[requests].offset)
        self._outputs = behind
        self._num_records = sum(len(output.produces) for output in behind)
        return ready, self._publisher.progress(self.number, ready) if behind else progress

    async def _transact(self, outputs: Sequence[Output], progress: dict[str, Progress]) -> None:
        lanes: dict[Lane, list[Produce]] = {}
        self._copied.clear()
        for output in outputs:
            for produce in output.produces:
                if not produce.required:
                    if not self._publisher.copies.takes(produce.topic):
                        continue
                    self._copied.add(produce.topic)
                lanes.setdefault((produce.topic, produce.partition), []).append(produce)
        moved = {topic: found for topic, found in progress.items() if found != self._committed.get(topic)}
        offsets = {
            TopicPartition(topic, self.number): OffsetAndMetadata(found.offset, found.metadata())
            for topic, found in (moved or progress).items()
        }
        await self._producer.begin_transaction()
        self._abortable = True
        # A broker that was killed since may have left the last one open in all that it wrote to: this one ends it, one
        # way or the other, and in all of it.
        for tp in self._wrote:
            self._producer._txn_manager.maybe_add_partition_to_txn(tp)
        self._wrote = set()
        works = [self._write(lane, produces) for lane, produces in lanes.items()]
        if offsets:
            works.append(self._producer.send_offsets_to_transaction(offsets, self._publisher.group_id))
        errors = [result for result in await asyncio.gather(*works, return_exceptions=True) if result is not None]
        if errors:
            raise min(errors, key=_consequence)
        self._abortable = False
        await self._producer.commit_transaction()

    async def _write(self, lane: Lane, produces: Sequence[Produce]) -> None:
        topic, number = lane
        futures = []
        if number is None:  # the producer places it by its key
            for produce in produces:
                futures.append(
                    await self._producer.send(topic, produce.value, produce.key, headers=list(produce.headers))
                )
        first = 0
        while number is not None and first < len(produces):
            batch = self._producer.create_batch()
            while first < len(produces) and _append(batch, produces[first]):
                first += 1
            batch.close()
            futures.append(await self._producer.send_batch(batch, topic, partition=number))
        written = await asyncio.gather(*futures)
        if topic not in self._copied:
            self._wrote.update(record.topic_partition for record in written)


def _append(batch: Any, produce: Produce) -> bool:
    """False: the batch is full."""
    headers = list(produce.headers)
    return batch.append(timestamp=None, key=produce.key, value=produce.value, headers=headers) is not None


def _consequence(error: BaseException) -> int:
    """Several parts of a transaction fail at once: fencing says most, aiokafka's complaints about its state least."""
    return 0 if isinstance(error, FENCED) else 1 if isinstance(error, KafkaError) else 2
