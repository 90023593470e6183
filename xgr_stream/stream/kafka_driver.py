"""The driver without Faust: one aiokafka consumer, micro-batches, commits by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError

from xgr_stream.stream.connection import record_of
from xgr_stream.stream.runtime import Runtime, Setup

logger = logging.getLogger(__name__)

POLL_MS = 200
RESTING_POLL_MS = 10
"""While partitions rest: how soon it is seen that they need not any more."""
MAX_BATCH = 1_000
SLICE = 100
"""Records that are processed before answers are written and refusals sent again: some 5 ms."""
COMMIT_INTERVAL_S = 1.0


class KafkaDriver:
    """Runs one worker from `run` until `stop`. At least once: offsets are committed behind what is durable."""

    def __init__(self, setup: Setup) -> None:
        self.runtime = Runtime(
            setup, on_progress=self._on_progress, on_failure=self._on_failure, end_offset=self._end_offset
        )
        self._topics = (setup.config.topics.events, setup.config.topics.requests)
        self._shutdown_timeout_s = setup.config.shutdown_timeout_s
        # Gives a worker the same partition numbers of all topics that have equal counts; round robin does not.
        self._consumer: AIOKafkaConsumer = setup.connection.group_consumer(
            setup.group_id,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(RangePartitionAssignor,),
        )
        self._committed: dict[TopicPartition, int] = {}
        self._advanced: set[TopicPartition] = set()
        self._stopping = asyncio.Event()
        self._rebalances = 0

    def stop(self) -> None:
        """Ask `run` to end: what was taken is answered first, for at most the shutdown timeout."""
        self.runtime.close()
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`. Raises what keeps the worker from going on."""
        try:
            await self.runtime.start()
            await self._consumer.start()
            self._consumer.subscribe(self._topics, listener=_Listener(self))
            await self._until_stopped()
            await self.runtime.drain(self._shutdown_timeout_s)
            await self.commit()
        finally:
            await self._consumer.stop()
            await self.runtime.stop()
        if self.runtime.failure is not None:
            raise self.runtime.failure

    async def _until_stopped(self) -> None:
        tasks = {
            asyncio.create_task(self._consume(), name="xgr-consume"),
            asyncio.create_task(self._commit_regularly(), name="xgr-commit"),
        }
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)

    async def _consume(self) -> None:
        while True:
            timeout_ms = RESTING_POLL_MS if self._consumer.paused() else POLL_MS
            batches = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=MAX_BATCH)
            await self._process(batches)
            self._rest_and_resume()

    async def _process(self, batches: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Events before requests, so that a request sees what its user did before it. What was fetched before a
        rebalance is let go: it comes again, from the committed offset on."""
        rebalances = self._rebalances
        for tp in sorted(batches, key=lambda tp: tp.topic == self._topics[1]):
            messages = batches[tp]
            for first in range(0, len(messages), SLICE):
                self.runtime.process(map(record_of, messages[first : first + SLICE]))
                self._advanced.add(tp)  # records that were taken before are done at once
                await asyncio.sleep(0)
                if self._rebalances != rebalances:
                    return

    def _rest_and_resume(self) -> None:
        """Don't read partitions while more is taken than is made durable."""
        assigned = {tp for tp in self._consumer.assignment() if tp.topic in self._topics}
        rest = {tp for tp in assigned if self.runtime.must_rest(tp.topic, tp.partition)}
        paused = self._consumer.paused() & assigned
        self._consumer.resume(*paused - rest)
        self._consumer.pause(*rest)
        if rest != paused:
            for topic in self._topics:
                self.runtime.rests(topic, sum(tp.topic == topic for tp in rest))

    # Commits

    async def commit(self) -> None:
        """Commit as far as everything is durable. A commit that fails is made up for by the next."""
        assigned = self._consumer.assignment()
        offsets = {}
        for tp in self._advanced & assigned:
            offset = self.runtime.processor.committable(tp.topic, tp.partition)
            if offset is not None and offset != self._committed.get(tp):
                offsets[tp] = offset
        self._advanced.clear()
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except KafkaError as error:
            self._advanced.update(offsets)
            logger.warning("offsets were not committed, and will be with the next ones: %s", error)
        else:
            self._committed.update(offsets)

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            await self.commit()

    def _on_progress(self, topic: str, partition: int) -> None:
        self._advanced.add(TopicPartition(topic, partition))

    def _on_failure(self, error: BaseException) -> None:
        self._stopping.set()

    def _end_offset(self, topic: str, partition: int) -> int | None:
        tp = TopicPartition(topic, partition)
        if tp not in self._consumer.assignment():
            return None
        end: int | None = self._consumer.highwater(tp)
        return end

    # Rebalance

    async def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        self._rebalances += 1
        await self.commit()
        self._committed.clear()
        self._advanced.clear()
        self.runtime.revoke(partitions)

    async def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        try:
            self.runtime.assign(partitions)
        except Exception as error:  # noqa: BLE001  aiokafka would log it and go on
            self.runtime.fail(error)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, driver: KafkaDriver) -> None:
        self._driver = driver

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._driver.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._driver.assigned(assigned)
