"""The driver inside a Faust app: two raw topics, and offsets that are done strictly in order.

Two agents subscribe to them. What they would get is taken from the app's consumer in batches (`FaustBatches`), unless
something else in the app reads the same topic: then the agents get it, as any others do.

Faust's own ways lose or double messages in several corners; each rule here closes one:

* what is committed, and acks (`noack`), are ours, strictly in offset order, since Faust commits past an offset that was
  not acknowledged;
* nothing is raised inside an agent, since Faust then skips the event and commits past it;
* one actor per partition (`isolated_partitions`), or there is no order;
* events that came before their partition's assignment was announced are held, those of an earlier generation dropped;
* on the way down, what was taken is finished within the shutdown timeout; then the remaining events are let go
  unacknowledged, since Faust would wait for them for ever; and a rebalance meanwhile closes no connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import faust
from faust.types import TP, TopicT
from mode import Service

from xgr_stream.history import HistoryStore
from xgr_stream.stream.batches import bound_others
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.faust_batches import RESTING_POLL_S, FaustBatches
from xgr_stream.stream.faust_client import set_consumer_right
from xgr_stream.stream.faust_delivery import deliver_at_once
from xgr_stream.stream.faust_topic import MAX_BATCH, Event, Supervisor, headers_of, raw_topic
from xgr_stream.stream.recommender import Recommender
from xgr_stream.stream.records import Record
from xgr_stream.stream.runtime import REPORT_INTERVAL_S, Runtime
from xgr_stream.stream.setup import Setup
from xgr_stream.stream.topology import all_topics, check_sources_exist

logger = logging.getLogger(__name__)

EVENTS_WAIT_S, REQUESTS_WAIT_S = 0.02, 0.001
"""Between two times that records are taken, unless there are `MAX_BATCH`: while they come in a row."""
APP_POLL_S = 3_600.0


class FaustDriver(Service):
    """A service of the app, started before its consumer and stopped after it."""

    def __init__(
        self, app: faust.App, recommender: Recommender, make_setup: Callable[[], Setup], history: HistoryStore
    ) -> None:
        super().__init__()
        self.history = history
        self.runtime: Runtime | None = None
        self._app = app
        self._recommender = recommender
        self._make_setup = make_setup
        self._open: defaultdict[tuple[str, int], deque[Event]] = defaultdict(deque)
        """Of those that came through the agents."""
        self._early: list[Event | Record] = []
        self.topics = topics = recommender.config.topics
        self._gathered: dict[str, list[Event | Record]] = {topics.events: [], topics.requests: []}
        """What came and nobody has taken yet, by topic."""
        self._due: asyncio.TimerHandle | None = None
        """When it is taken."""
        self._sources: list[TopicT] = []
        """What agents of ours read besides."""
        self._done: dict[TP, int] = {}
        """Up to where they are done with the partitions of which something came."""
        self._taken_at = float("-inf")
        self._resting: set[tuple[str, int]] = set()
        self._draining: asyncio.Task[None] | None = None
        self._crashing: asyncio.Task[None] | None = None
        self._batches = FaustBatches(
            app,
            events=topics.events,
            requests=topics.requests,
            take=self._gather,
            committable=self._committable,
            must_rest=self._notes_whether_it_must_rest,
        )
        self.events = self._agent(topics.events)
        self.requests = self._agent(topics.requests)
        app.add_dependency(self)
        signals: Any = app
        signals.on_partitions_assigned.connect(self._on_assigned)
        signals.on_partitions_revoked.connect(self._on_revoked)

    def _agent(self, topic: str) -> Any:
        return self._app.agent(
            raw_topic(self._app, topic),
            name=f"xgr-{topic}",
            isolated_partitions=True,
            supervisor_strategy=Supervisor,
        )(self._consume)

    def read_too(self, topic: TopicT) -> None:
        """An agent of ours has this topic, which must exist: on the way down its remaining records are let go, too."""
        self._sources.append(topic)
        bound_others([topic.get_topic_name()])
        self._batches.let_go_of(topic.get_topic_name())

    def came(self, message: Any) -> None:
        """That agent begins with this one."""
        if message.generation_id == self._app.consumer_generation_id:
            self._done.setdefault(message.tp, message.offset)

    def acknowledged(self, message: Any) -> None:
        """That agent is done with this one."""
        self._batches.acknowledged(message)
        if message.tp in self._done and message.generation_id == self._app.consumer_generation_id:
            self._done[message.tp] = message.offset + 1

    # Service

    async def on_start(self) -> None:
        """Raises `TopologyError` for topics that are missing or do not belong together: the app then does not start."""
        self._open.clear()
        self._early.clear()
        self._done.clear()
        self._let_go()
        self._draining = None
        self.runtime = Runtime(
            self._make_setup(),
            on_progress=self._acknowledge,
            on_failure=self._crash_app,
            end_offset=self._end_offset,
        )
        await self._check_sources(self.runtime.setup.connection)
        await self.runtime.start()
        loop, runtime = asyncio.get_running_loop(), self.runtime
        set_consumer_right(self._app, lambda error: loop.call_soon_threadsafe(runtime.fail, error))
        self._batches.start()
        self._recommender.bind(self.runtime)

    async def _check_sources(self, connection: Connection) -> None:
        """Faust creates topics of the app's own only with its consumer, which starts after us, and only those that it
        reads itself. What another recommender of the app has is that one's to create."""
        drivers = [child for child in self._app._children if isinstance(child, FaustDriver)]
        made = {name for driver in drivers for name in all_topics(driver.topics)}
        for source in self._sources:
            if source.internal and self._app.conf.topic_allow_declare:
                await source.maybe_declare()
                made.add(source.get_topic_name())
        there = {source.get_topic_name() for source in self._sources} - made
        if there:
            await check_sources_exist(connection, there)

    @Service.task
    async def _drain_when_the_app_stops(self) -> None:
        while not self._app.should_stop:
            await self._app.sleep(APP_POLL_S)
        await self._drain()

    async def on_stop(self) -> None:
        if self.runtime is not None:
            await self._drain()
            await self._recommender.release()
            await self.runtime.stop()

    async def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drained())
        await asyncio.shield(self._draining)

    async def _drained(self) -> None:
        self._take_gathered()
        if self.runtime is not None:
            await self.runtime.drain(self._recommender.config.shutdown_timeout_s)
        self._open.clear()
        self._early.clear()
        self._let_go()
        self._batches.stop()

    @Service.task
    async def _report_regularly(self) -> None:
        while not self.should_stop:
            self.report()
            await self.sleep(REPORT_INTERVAL_S)

    def report(self) -> None:
        """Set the gauges of how far the copies of other topics are behind, over this worker's partitions."""
        if self.runtime is not None:
            for topic in {source.get_topic_name() for source in self._sources}:
                ends = ((self._end_offset(*tp), done) for tp, done in self._done.items() if tp.topic == topic)
                behind = sum(max(0, end - done) for end, done in ends if end is not None)
                self.runtime.setup.metrics.source_behind.labels(topic).set(behind)

    def _end_offset(self, topic: str, partition: int) -> int | None:
        consumer: Any = self._app.consumer
        try:
            end: int | None = consumer.highwater(TP(topic, partition))
        except Exception:  # noqa: BLE001  it lives in a thread of its own, and may be between two assignments
            return None
        return end

    def _crash_app(self, error: BaseException) -> None:
        self._crashing = asyncio.get_running_loop().create_task(self._app.crash(error))

    # Records

    async def _consume(self, stream: Any) -> None:
        async for event in stream.noack().events():
            tp = event.message.tp
            self._gather(tp.topic, [event])
            del event  # Faust waits for as long as anything refers to what is not acknowledged
            while self._notes_whether_it_must_rest(tp.topic, tp.partition):  # noqa: ASYNC110  nothing tells of the end
                await asyncio.sleep(RESTING_POLL_S)

    def _gather(self, topic: str, records: Sequence[Event | Record]) -> None:
        """Have these taken together with what comes right after them: few come at a time, and to wake the device thread
        and the publisher for each takes longer than the record. Whatever comes after a pause is taken at once, and
        events at the latest with the next request."""
        if self._draining is not None and self._draining.done():
            return  # let go: Faust would wait for what is kept
        self._gathered[topic] += records
        if len(self._gathered[topic]) >= MAX_BATCH:
            self._take_gathered()
            return
        asked = topic == self._recommender.config.topics.requests
        loop = asyncio.get_running_loop()
        due = max(loop.time(), self._taken_at + (REQUESTS_WAIT_S if asked else EVENTS_WAIT_S))
        if self._due is None or due < self._due.when():
            if self._due is not None:
                self._due.cancel()
            self._due = loop.call_at(due, self._take_gathered)

    def _take_gathered(self) -> None:
        """Events before requests, so that a request sees what its user did before it."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._taken_at = asyncio.get_running_loop().time()
        gathered = [record for records in self._gathered.values() for record in records]
        self._let_go()
        self.take(gathered)

    def _let_go(self) -> None:
        for records in self._gathered.values():
            records.clear()

    def take(self, gathered: Iterable[Event | Record]) -> None:
        """Hand records to the processor, each partition's in offset order. Never raises: an error fails the worker.
        Nothing is taken after it: what came later would be committed over what the error has lost."""
        runtime = self.runtime
        if runtime is None or runtime.failure is not None:
            return
        try:
            self._process(runtime, gathered)
        except Exception as error:  # noqa: BLE001  a timer's goes to the loop's log alone, an agent's skips an event
            runtime.fail(error)

    def _process(self, runtime: Runtime, gathered: Iterable[Event | Record]) -> None:
        generation, held = self._app.consumer_generation_id, runtime.processor.assigned
        records = []
        advanced = set()
        for one in gathered:
            event: Event | None = None
            if isinstance(one, Record):
                record = one
            else:
                if one.message.generation_id != generation:
                    continue  # from before a rebalance: it comes again, to its partition's owner
                event, record = one, _record(one.message)
            if record.partition not in held:
                self._early.append(one)
                continue
            tp = (record.topic, record.partition)
            if event is not None:
                self._open[tp].append(event)
            records.append(record)
            advanced.add(tp)
        runtime.process(records)
        for tp in advanced:  # records that were taken before are done at once
            self._acknowledge(*tp)

    def _notes_whether_it_must_rest(self, topic: str, partition: int) -> bool:
        """Whether no more of a partition is taken for now: more is taken than is made durable. Faust pauses a
        partition whose actor does not take what it was given."""
        runtime = self.runtime
        rests = runtime is not None and not self._app.should_stop and runtime.must_rest(topic, partition)
        self._note_rest(topic, partition, rests)
        return rests

    def _note_rest(self, topic: str, partition: int, rests: bool) -> None:
        if self.runtime is not None and rests != ((topic, partition) in self._resting):
            self._resting ^= {(topic, partition)}
            self.runtime.rests(topic, sum(resting == topic for resting, _ in self._resting))

    def _committable(self, topic: str, partition: int) -> int | None:
        return None if self.runtime is None else self.runtime.processor.committable(topic, partition)

    def _acknowledge(self, topic: str, partition: int) -> None:
        self._batches.progressed(topic, partition)
        events = self._open.get((topic, partition))
        if events:
            upto = self._committable(topic, partition)
            while upto is not None and events and events[0].message.offset < upto:
                event = events.popleft()
                event.ack()
                self._batches.acknowledged(event.message)

    # Rebalance. Faust has committed already when it announces a revocation.

    async def _on_assigned(self, _: object, assigned: Iterable[TP], **__: object) -> None:
        if self.runtime is None:
            return
        deliver_at_once(self._app)
        try:
            self.runtime.assign(assigned)
        except Exception as error:  # noqa: BLE001  Faust would kill the worker after a minute, without the reason
            self.runtime.fail(error)
        early, self._early = self._early, []
        self.take(early)

    async def _on_revoked(self, _: object, revoked: Iterable[TP], **__: object) -> None:
        for tp in revoked:
            self._open.pop((tp.topic, tp.partition), None)
            self._done.pop(tp, None)
            self._note_rest(tp.topic, tp.partition, False)
        self._batches.revoked(revoked)
        self._early.clear()
        self._let_go()
        if self.runtime is not None:
            self.runtime.revoke(revoked)


def _record(message: Any) -> Record:
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        -1 if message.timestamp is None else round(message.timestamp * 1000),
        headers_of(message),
    )
