"""One worker's processor with all that moves it: topics, producer, device thread, recovery. Drivers feed it records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from xgr_stream.errors import DeviceLost
from xgr_stream.scheduler.clock import Clock, SystemClock
from xgr_stream.scheduler.timer_slack import PATIENT_NS, set_timer_slack
from xgr_stream.scheduler.versions import Versions
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.stream.batches import bound_topics
from xgr_stream.stream.connection import stop_client
from xgr_stream.stream.lane_publisher import LanePublisher
from xgr_stream.stream.models import Models
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.progress import Progress
from xgr_stream.stream.publisher import Publisher
from xgr_stream.stream.records import Record
from xgr_stream.stream.recovery import Recovery
from xgr_stream.stream.setup import ServedEngine, Setup
from xgr_stream.stream.snapshots import Snapshots
from xgr_stream.stream.standby import Standby
from xgr_stream.stream.topology import check_assignment, ensure_topics
from xgr_stream.stream.transactions import TransactionalPublisher
from xgr_stream.types import RecommendRequest, RecommendResponse

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""How long, at the end of the shutdown timeout, refusals may take to be written; and the device's thread to end."""
REPORT_INTERVAL_S = 1.0


class Runtime:
    """Runs once: `start`, then assignments and records, then `drain` and `stop`. On one event loop.

    `on_progress(topic, partition)`: more of this topic partition may be committed. `on_failure(error)`: this worker
    can't go on; it is called once at most. `end_offset(topic, partition)`: where a topic partition ends by what the
    consumer heard last, None if it heard nothing yet.

    With transactions, what is read of a partition counts only from its `on_opened(number, progress)` on, and from the
    offsets named there; `on_fenced()`: join the group anew, another worker may have been given what was ours.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        on_progress: Callable[[str, int], None],
        on_failure: Callable[[BaseException], None],
        end_offset: Callable[[str, int], int | None],
        on_opened: Callable[[int, Mapping[str, Progress]], None] = lambda *_: None,
        on_fenced: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self.setup = setup
        self.topics = setup.config.topics
        self.clock = clock or SystemClock()
        self.failure: BaseException | None = None
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._end_offset = end_offset
        self._on_opened = on_opened
        self._on_fenced = on_fenced
        self._loop: asyncio.AbstractEventLoop | None = None
        engine = setup.engine
        versions: Versions[ServedEngine] = engine if isinstance(engine, Versions) else Versions(engine)
        self.history = versions.primary.history
        """Of all versions."""
        self._device = DeviceWorker(
            versions, setup.engine_config, self.clock, setup.metrics, on_lost=self._on_device_lost
        )
        self.processor = Processor(
            self._device,
            self.history,
            setup.config,
            knows_item=lambda item_id: versions.primary.knows_item(item_id),
            clock=self.clock,
            metrics=setup.metrics,
            decode_event=setup.decode_event,
            uses_topic=lambda topic: topic in setup.sources or topic in self.models.topics,
        )
        self.num_partitions = 0
        self._resting = {self.topics.events: 0, self.topics.requests: 0}
        self._timer_slack: int | None = None
        """The loop's thread's, before it was told to be patient."""
        self._started = False
        self._joined = False
        self._closing = False
        self._producers: list[AIOKafkaProducer] = []
        """The first, and those that took its place in the publisher. What they were given before is theirs to write."""
        self._publisher: Publisher | None = None
        self._transactions: TransactionalPublisher | None = None
        """The same, if it is one of transactions."""
        self._opening: set[int] = set()
        """Partitions that are ours and not the processor's yet: their former owner is being fenced."""
        self._tasks: list[asyncio.Task[None]] = []
        """That run until the end; one that fails ends the worker."""
        self._snapshots: Snapshots | None = None
        self._snapshotting: asyncio.Task[None] | None = None
        self._standby: Standby | None = None
        self.models = Models(setup, versions, self._device, self.fail)
        self._recoveries: dict[int, asyncio.Task[None]] = {}

    @property
    def started(self) -> bool:
        return self._started

    @property
    def producer(self) -> AIOKafkaProducer:
        if not self._producers:
            raise RuntimeError("the runtime must be started before its producer is used")
        return self._producers[-1]

    async def renew_producer(self, spoilt: AIOKafkaProducer) -> None:
        """Have another producer in the place of one that is out of step with the broker."""
        if self._publisher is None:
            raise RuntimeError("the runtime must be started before its producer is used")
        try:
            await self._publisher.renew(spoilt)
        except KafkaError as error:
            self.fail(error)

    async def start(self) -> None:
        """Raises `TopologyError` for topics that are missing or do not belong together."""
        setup = self.setup
        self._loop = asyncio.get_running_loop()
        bound_topics(self.topics, setup.config.max_message_bytes)
        self.num_partitions = await ensure_topics(setup.connection, self.topics, setup.config.partitions)
        self._publisher = self._make_publisher(await self._new_producer())
        if setup.config.snapshots is not None:
            self._snapshots = Snapshots(
                setup.config.snapshots,
                setup.connection,
                self._publisher.write,
                self.processor,
                self.history,
                topic=self.topics.changelog,
                metrics=setup.metrics,
            )
            self._snapshotting = self._run(self._snapshots.run(), "xgr-snapshots")
        if setup.config.standby_bytes:
            self._standby = Standby(
                setup.connection,
                self.history,
                topic=self.topics.changelog,
                num_partitions=self.num_partitions,
                max_bytes=setup.config.standby_bytes,
                isolation_level=setup.config.isolation_level,
                owned=lambda: self.assigned,
                metrics=setup.metrics,
            )
        self._recovery = Recovery(
            setup.connection,
            self._publisher.write,
            self.processor,
            setup.config,
            group_id=setup.group_id,
            clock=self.clock,
            snapshots=self._snapshots,
            standby=self._standby,
        )
        self._device.start()
        self._timer_slack = set_timer_slack(PATIENT_NS)
        await self.models.start()  # nothing is served from a catalog of yesterday
        self.models.follow()
        self._run(self._publisher.run(), "xgr-publisher")
        self._run(self._report_regularly(), "xgr-report")
        self._started = True

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = await self.setup.connection.start_producer()
        self._producers.append(producer)
        return producer

    def _make_publisher(self, producer: AIOKafkaProducer) -> Publisher:
        options: dict[str, Any] = {
            "processor": self.processor,
            "producer": producer,
            "new_producer": self._new_producer,
            "clock": self.clock,
            "metrics": self.setup.metrics,
            "on_progress": self._on_progress,
            "on_failure": self.fail,
        }
        if self.setup.config.transactions is None:
            return LanePublisher(**options)
        self._transactions = TransactionalPublisher(
            self.setup.config.transactions,
            self.setup.connection,
            group_id=self.setup.group_id,
            topics=self.topics,
            on_lost=self._on_lost,
            **options,
        )
        return self._transactions

    # Partitions and records

    @property
    def assigned(self) -> frozenset[int]:
        """The partitions that are ours, served or not."""
        return self.processor.assigned | self._opening

    def assign(self, assigned: Iterable[tuple[str, int]]) -> None:
        """Take on what of these (topic, partition) pairs is ours and not held yet, and begin to restore it.

        Raises `TopologyError` when events and requests of a partition were given to different workers.
        """
        numbers = check_assignment(self.topics, assigned)
        if self._standby is not None and not self._joined:
            self._run(self._standby.run(), "xgr-standby")
        self._joined = True
        new = numbers - self.assigned
        if self._transactions is None:
            self.processor.assign(new, self.num_partitions)
        self._restore(new)

    def _restore(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self._transactions is not None:
                self._opening.add(number)
            self._recoveries[number] = self._watched(self._recover(number), f"xgr-recovery-{number}")

    def revoke(self, revoked: Iterable[tuple[str, int]]) -> None:
        """Drop what of these (topic, partition) pairs is ours, with all that is pending."""
        numbers = {partition for topic, partition in revoked if topic in (self.topics.events, self.topics.requests)}
        for number in numbers & self._recoveries.keys():
            self._recoveries.pop(number).cancel()
        if self._standby is not None:
            for number in numbers & self.assigned:  # what it had handed over, or was about to
                self._standby.drop(number)
        self.processor.revoke(numbers)
        self._opening -= numbers
        for number in numbers:
            if self._transactions is not None:
                self._transactions.close(number)
            self.setup.metrics.events_behind.remove(number)

    def _on_lost(self, number: int, fenced: bool) -> None:
        """Histories and answers in memory are ahead of what was committed: begin the partition anew, if it is ours."""
        self.revoke([(self.topics.events, number)])
        if fenced:
            self._on_fenced()
        else:
            self._restore([number])

    async def _recover(self, number: int) -> None:
        if self._transactions is not None:
            progress = await self._transactions.open(number)
            self._opening.discard(number)
            self.processor.assign([number], self.num_partitions, progress)
            self._on_opened(number, progress)
        await self._recovery.run(number)
        self._on_progress(self.topics.events, number)  # of what was held, what changes nothing is done at once

    def process(self, records: Iterable[Record]) -> None:
        self.processor.process(records)

    def must_rest(self, topic: str, partition: int) -> bool:
        """Whether the driver should not read a topic partition for now: what is taken must stay bounded.

        Events rest first, when too many are not durable, or answers begin to pile up, or they would wait for their
        history with too many others; requests only when nothing can be published. Requests that wait for the device are
        refused beyond a bound, and never a reason to rest.
        """
        if not self.processor.holds(partition):
            return True
        config, publisher, used = self.setup.config, self._publisher, 0.0
        if publisher is not None:
            answers, waiting_bytes = publisher.unpublished(self.topics.requests), publisher.unpublished_bytes
            used = max(answers / config.max_unpublished_answers, waiting_bytes / config.max_waiting_bytes)
        if topic == self.topics.requests:
            return used >= 1
        if not self.processor.is_restored(partition):
            used = max(used, self.processor.early_bytes / config.max_waiting_bytes)
        return used >= 0.5 or self.processor.backlog(topic, partition) >= config.max_open_events

    def rests(self, topic: str, count: int) -> None:
        """So many partitions of a topic rest now."""
        self._resting[topic] = count
        self.setup.metrics.resting_partitions.labels(topic).set(count)

    def submit(self, request: RecommendRequest) -> Future[RecommendResponse]:
        return self.processor.submit(request)

    async def settle(self, timeout_s: float) -> None:
        """Wait until what was taken is answered and durable, for `timeout_s` at most. It goes on either way."""
        await self._drained(timeout_s)

    async def commit(self, timeout_s: float) -> None:
        """With transactions: commit the offsets that are done and that nothing was written for."""
        if self._transactions is not None:
            await self._transactions.commit(timeout_s)

    # The end

    def close(self) -> None:
        """The worker is about to drain: it is not ready from now on, so that nobody sends it anything new."""
        self._closing = True

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, and answer what was taken, within `timeout_s`: the last of it with `shutting_down`. Then
        snapshots, if all is durable: else the broker is away, and they would wait for it."""
        self.close()
        self.processor.close()
        grace_s = min(GRACE_S, timeout_s / 2)
        drained = await self._drained(timeout_s - grace_s)
        if not drained:
            logger.warning("%d requests are refused: the shutdown timeout is over", self.processor.pending)
            self.processor.abandon()
            if self._publisher is not None:
                self._publisher.wake()
            drained = await self._drained(grace_s)
        if drained and self._snapshots is not None and self._snapshotting is not None and self.failure is None:
            self._snapshotting.remove_done_callback(self._on_task_done)
            self._snapshotting.cancel()
            await asyncio.wait([self._snapshotting])
            await self._snapshots.write_all()

    async def stop(self) -> None:
        """Stop everything, drained or not. What is not durable is not acknowledged."""
        tasks = [*self._recoveries.values(), *self._tasks]
        for task in tasks:
            task.remove_done_callback(self._on_task_done)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.processor.revoke(self.processor.assigned)
        ends: list[Coroutine[Any, Any, object]] = [asyncio.to_thread(self._device.stop, GRACE_S), self.models.stop()]
        if self._snapshots is not None:
            ends.append(self._snapshots.stop())
        if self._transactions is not None:
            ends.append(self._transactions.stop())
        ends += map(stop_client, self._producers)
        await asyncio.gather(*ends)
        if self._timer_slack is not None:
            set_timer_slack(self._timer_slack)
            self._timer_slack = None

    async def _drained(self, timeout_s: float) -> bool:
        publisher = self._publisher
        if publisher is None:
            return True
        deadline = self.clock.now() + timeout_s
        while self._publishes and (self.processor.pending or not publisher.idle):
            if self.clock.now() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    @property
    def _publishes(self) -> bool:
        """Whether answers still reach the broker: a lost device keeps none from it, any other failure does."""
        return self.failure is None or isinstance(self.failure, DeviceLost)

    # Failure and health

    def report(self) -> None:
        """Set the gauges of how far each partition's events are behind, once its history says how far it is."""
        for number in self.processor.assigned - self.processor.restoring:
            end = self._end_offset(self.topics.events, number)
            if end is not None:
                behind = self.processor.events_behind(number, end)
                self.setup.metrics.events_behind.labels(number).set(behind)
        if self._publisher is not None:
            for kind, topic in (("events", self.topics.events), ("answers", self.topics.requests)):
                self.setup.metrics.unpublished.labels(kind).set(self._publisher.unpublished(topic))

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            self.report()

    def _on_device_lost(self, error: DeviceLost) -> None:
        """Called on the device thread. What waits has its answers, which are still published on the way down."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.fail, error)

    def fail(self, error: BaseException) -> None:
        """This worker can't go on. Tells the driver, once."""
        if self.failure is None:
            self.failure = error
            logger.error("the worker stops: %s", error)
            self._on_failure(error)

    def illness(self) -> str | None:
        """What keeps this worker from ever serving again; None while it is well."""
        if self.failure is not None:
            return str(self.failure)
        if self._started and not self._closing and not self._device.alive:
            return "the device thread has ended"
        return None

    def readiness(self) -> Mapping[str, Any]:
        """Whether this worker has been told what is its to serve and serves all of it, and what keeps it from it."""
        misplaced = {
            labels["topic"]: int(value)
            for labels, value in (
                (sample.labels, sample.value)
                for metric in self.setup.metrics.misplaced_records.collect()
                for sample in metric.samples
                if sample.name.endswith("_total")
            )
        }
        restoring = sorted(self.processor.restoring | self._opening)
        return {
            "ready": self.failure is None and self._joined and not restoring and not self._closing,
            "shutting_down": self._closing,
            "failure": None if self.failure is None else str(self.failure),
            "partitions": sorted(self.assigned),
            "restoring": restoring,
            "resting": dict(self._resting),
            "catalog": dict(self.models.catalog),
            "models": self.models.status(),
            "model_error": self.models.error,
            "misplaced_records": misplaced,
        }

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._watched(work, name)
        self._tasks.append(task)
        return task

    def _watched(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)
