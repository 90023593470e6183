"""The driver without Faust: one aiokafka consumer, micro-batches, commits by hand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError

from xgr_stream.stream.connection import record_of, stop_client
from xgr_stream.stream.group_member import (
    CHECK_INTERVAL_S,
    Admission,
    Membership,
    end_when_taken_over,
    look_for_topics,
    membership,
)
from xgr_stream.stream.progress import Progress
from xgr_stream.stream.records import EVENTS_AT_ONCE, REQUESTS_AT_ONCE, Record
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.setup import Setup

logger = logging.getLogger(__name__)

POLL_MS = 200
RESTING_POLL_MS = 10
"""While partitions rest: how soon it is seen that they need not any more."""
MAX_BATCH = 500
"""Records of one round: what requests wait for at most, since events go first."""
COMMIT_INTERVAL_S = 1.0
COMMIT_TIMEOUT_S = 2.0
END_S = 5.0
"""What a last commit and the end of all clients may take without a broker: of the shutdown timeout, half at most."""
SETTLE_TIMEOUT_S = 1.0
"""How long a rebalance waits for the answers to what was taken, so that they are not given twice."""


class KafkaDriver:
    """Runs one worker from `run` until `stop`. At least once: offsets are committed behind what is durable."""

    def __init__(self, setup: Setup) -> None:
        self.runtime = Runtime(
            setup,
            on_progress=lambda *_: None,
            on_failure=self._on_failure,
            end_offset=self._end_offset,
            on_opened=self._on_opened,
            on_fenced=self._on_fenced,
        )
        self._transactional = setup.config.transactions is not None
        self._topics = (setup.config.topics.events, setup.config.topics.requests)
        self._shutdown_timeout_s = setup.config.shutdown_timeout_s
        # Gives a worker the same partition numbers of all topics that have equal counts; round robin does not.
        self._consumer: AIOKafkaConsumer = setup.connection.group_consumer(
            setup.group_id,
            auto_offset_reset="earliest",
            isolation_level=setup.config.isolation_level,
            partition_assignment_strategy=(RangePartitionAssignor,),
        )
        connection = setup.connection
        if connection.group_instance_id is not None:
            end_when_taken_over(self._consumer, connection.group_instance_id, connection.session_timeout_ms)
        self._admission = Admission(self._consumer, setup.group_id)
        self._committed: dict[TopicPartition, int] = {}
        self._stopping = asyncio.Event()
        self._membership: Membership | None = None
        """When it was last given partitions."""
        self._assigned = asyncio.Event()
        """Cleared during a rebalance: nothing is read then."""
        self._rebalances = 0
        self._seeks: Counter[int] = Counter()
        """Times that a partition was begun anew: what was fetched of it before is void."""

    def stop(self) -> None:
        """Ask `run` to end: what was taken is answered first, for at most the shutdown timeout."""
        self.runtime.close()
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`. Raises what keeps the worker from going on."""
        timeout_s = self._shutdown_timeout_s
        try:
            if await self._started():
                await self._until_stopped()
                await self.runtime.drain(max(timeout_s - END_S, timeout_s / 2))
                await self.commit()
        finally:
            # At once: without a broker each takes as long as it may.
            await asyncio.gather(stop_client(self._consumer), self.runtime.stop())
        if self.runtime.failure is not None:
            raise self.runtime.failure

    async def _started(self) -> bool:
        """False: told to stop before it was. A producer whose broker goes away while it starts waits for ever."""
        starting = asyncio.create_task(self._start(), name="xgr-start")
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                return True
            return False
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.wait({starting, stopping})

    async def _start(self) -> None:
        await self.runtime.start()
        await self._consumer.start()
        self._consumer.subscribe(self._topics, listener=_Listener(self))

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
            while not self._assigned.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_INTERVAL_S):
                        await self._assigned.wait()
                self._admission.check()
            timeout_ms = RESTING_POLL_MS if self._consumer.paused() else POLL_MS
            batches = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=MAX_BATCH)
            await self._process(batches)
            if sum(map(len, batches.values())) == MAX_BATCH:
                await self._process(await self._fetched_requests())
            self._rest_and_resume()

    async def _fetched_requests(self) -> Mapping[TopicPartition, Sequence[Any]]:
        """Requests that lie fetched behind events: the consumer hands out one partition's records after the other's,
        so that requests would wait until no more events come in than are processed."""
        partitions = [tp for tp in self._consumer.assignment() if tp.topic == self._topics[1]]
        if not partitions:  # none given would mean all
            return {}
        requests: Mapping[TopicPartition, Sequence[Any]] = await self._consumer.getmany(
            *partitions, timeout_ms=0, max_records=MAX_BATCH
        )
        return requests

    async def _process(self, batches: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Events before requests, so that a request sees what its user did before it. What was fetched before a
        rebalance is let go: it comes again, from the committed offset on."""
        rebalances, seeks = self._rebalances, self._seeks.copy()
        for topic, size in zip(self._topics, (EVENTS_AT_ONCE, REQUESTS_AT_ONCE), strict=True):
            # Over all partitions: a slice of each by itself would have the device thread woken for a few records.
            messages = [message for tp, fetched in batches.items() if tp.topic == topic for message in fetched]
            for first in range(0, len(messages), size):
                records: Iterator[Record] = map(record_of, messages[first : first + size])
                if self._seeks != seeks:
                    records = filter(lambda record: self._seeks[record.partition] == seeks[record.partition], records)
                self.runtime.process(records)
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
        if self._transactional:
            await self.runtime.commit(COMMIT_TIMEOUT_S)
            return
        offsets = {}
        for tp in self._consumer.assignment():
            offset = self.runtime.processor.committable(tp.topic, tp.partition)
            if offset is not None and offset != self._committed.get(tp):
                offsets[tp] = offset
        if not offsets:
            return
        try:
            # Without a broker it would wait for one, and the worker's end, or a rebalance, with it.
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self._consumer.commit(offsets)
        except (KafkaError, TimeoutError) as error:
            logger.warning("offsets were not committed, and will be with the next ones: %r", error)
        else:
            self._committed.update(offsets)

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            look_for_topics(self._consumer)
            await self.commit()

    def _on_failure(self, error: BaseException) -> None:
        self._stopping.set()

    def _end_offset(self, topic: str, partition: int) -> int | None:
        tp = TopicPartition(topic, partition)
        if tp not in self._consumer.assignment():
            return None
        end: int | None = self._consumer.highwater(tp)
        return end

    # Rebalance

    def _on_opened(self, number: int, progress: Mapping[str, Progress]) -> None:
        """The former owner can't commit any more: go on from where it had come by then."""
        self._seeks[number] += 1
        assigned = self._consumer.assignment()
        for topic, (offset, _) in progress.items():
            tp = TopicPartition(topic, number)
            if tp in assigned:  # else it is assigned soon, and begins at what is committed then
                self._consumer.seek(tp, offset)

    def _on_fenced(self) -> None:
        """Only the group knows whose the partition is."""
        self._consumer._coordinator.request_rejoin()

    async def revoked(self, _: Iterable[TopicPartition]) -> None:
        """The group is being divided anew. aiokafka takes all partitions away for that; which of them are lost is
        known when the new ones are assigned, and until then no other worker has them."""
        self._assigned.clear()
        self._rebalances += 1
        await self.runtime.settle(SETTLE_TIMEOUT_S)
        await self.commit()
        self._committed.clear()

    async def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Give up what is now another's. What stays here keeps histories, prefixes and requests, unless there was an
        assignment that this worker did not get: somebody else may have gone on meanwhile. Without an await: nothing may
        be read before it is done."""
        now = membership(self._consumer)
        staying = {tp.partition for tp in partitions} if now.follows(self._membership) else set()
        self._membership = now
        try:
            self.runtime.revoke((self._topics[0], number) for number in self.runtime.assigned - staying)
            self.runtime.assign(partitions)
            for topic in self._topics:  # to be read, all of them, whatever rested before
                self.runtime.rests(topic, 0)
        except Exception as error:  # noqa: BLE001  aiokafka would log it and go on
            self.runtime.fail(error)
        self._assigned.set()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, driver: KafkaDriver) -> None:
        self._driver = driver

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._driver.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._driver.assigned(assigned)
