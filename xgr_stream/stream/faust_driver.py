"""The driver inside a Faust app: two agents on raw topics, and acks in offset order.

Faust's own ways lose or double messages in several corners; each rule here closes one:

* acks are ours (`noack`), strictly in offset order, since Faust commits past an offset that was not acknowledged;
* nothing is raised inside an agent, since Faust then skips the event and commits past it;
* one actor per partition (`isolated_partitions`), or there is no order;
* events that came before their partition's assignment was announced are held, those of an earlier generation dropped;
* on the way down, what was taken is finished within the shutdown timeout; then the remaining events are let go
  unacknowledged, since Faust would wait for them for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import faust
from faust import Topic
from faust.types import TP, EventT
from mode import Service

from xgr_stream.stream.faust_delivery import deliver_at_once
from xgr_stream.stream.recommender import Recommender
from xgr_stream.stream.records import Record
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.setup import Setup

logger = logging.getLogger(__name__)

Event = EventT[Any]

MAX_BATCH = 100
EVENTS_WAIT_S, REQUESTS_WAIT_S = 0.02, 0.001
"""Between two times that records are taken, unless there are `MAX_BATCH`: while they come in a row."""
APP_POLL_S = 3_600.0


class FaustDriver(Service):
    """A service of the app, started before its consumer and stopped after it."""

    def __init__(self, app: faust.App, recommender: Recommender, make_setup: Callable[[], Setup]) -> None:
        super().__init__()
        self.runtime: Runtime | None = None
        self._app = app
        self._recommender = recommender
        self._make_setup = make_setup
        self._open: defaultdict[tuple[str, int], deque[Event]] = defaultdict(deque)
        self._early: list[Event] = []
        self._gathered: list[Event] = []
        """What the actors got and nobody has taken yet."""
        self._due: asyncio.TimerHandle | None = None
        """When it is taken."""
        self._taken_at = float("-inf")
        self._progress = asyncio.Event()
        self._resting: set[tuple[str, int]] = set()
        self._draining: asyncio.Task[None] | None = None
        topics = recommender.config.topics
        self.events = self._agent(topics.events)
        self.requests = self._agent(topics.requests)
        app.add_dependency(self)
        signals: Any = app
        signals.on_partitions_assigned.connect(self._on_assigned)
        signals.on_partitions_revoked.connect(self._on_revoked)

    def _agent(self, topic: str) -> Any:
        return self._app.agent(raw_topic(self._app, topic), name=f"xgr-{topic}", isolated_partitions=True)(
            self._consume
        )

    # Service

    async def on_start(self) -> None:
        """Raises `TopologyError` for topics that do not belong together: the app then does not start."""
        self._open.clear()
        self._early.clear()
        self._gathered.clear()
        self._draining = None
        self.runtime = Runtime(
            self._make_setup(),
            on_progress=self._acknowledge,
            on_failure=self._crash_app,
            end_offset=self._end_offset,
        )
        await self.runtime.start()
        self._recommender.bind(self.runtime)

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
        # Faust keeps weak references to what it waits for.
        self._open.clear()
        self._early.clear()
        self._gathered.clear()
        self._progress.set()

    def _end_offset(self, topic: str, partition: int) -> int | None:
        consumer: Any = self._app.consumer
        try:
            end: int | None = consumer.highwater(TP(topic, partition))
        except Exception:  # noqa: BLE001  it lives in a thread of its own, and may be between two assignments
            return None
        return end

    def _crash_app(self, error: BaseException) -> None:
        asyncio.get_running_loop().create_task(self._app.crash(error))

    # Records

    async def _consume(self, stream: Any) -> None:
        async for events in batches(stream):
            self._gather(events)
            tp = events[-1].message.tp
            while self._must_rest(tp.topic, tp.partition):
                self._note_resting(tp.topic, tp.partition, rests=True)
                self._progress.clear()
                await self._progress.wait()
            self._note_resting(tp.topic, tp.partition, rests=False)

    def _gather(self, events: list[Event]) -> None:
        """Have these taken together with what comes right after them: Faust hands out one record in a turn of its loop,
        and to wake the device thread and the publisher for each takes longer than the record. Whatever comes after a
        pause is taken at once, and events at the latest with the next request."""
        if self._draining is not None and self._draining.done():
            return  # let go: Faust would wait for what is kept
        self._gathered += events
        if len(self._gathered) >= MAX_BATCH:
            self._take_gathered()
            return
        asked = events[0].message.topic == self._recommender.config.topics.requests
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
        gathered, self._gathered = self._gathered, []
        requests = self._recommender.config.topics.requests
        self.take(sorted(gathered, key=lambda event: event.message.topic == requests))

    def take(self, events: Iterable[Event]) -> None:
        """Hand events to the processor, each partition's in offset order. Never raises."""
        runtime, generation = self.runtime, self._app.consumer_generation_id
        if runtime is None:
            return
        held = runtime.processor.assigned
        records = []
        advanced = set()
        for event in events:
            message = event.message
            if message.generation_id != generation:
                continue  # from before a rebalance: it comes again, to its partition's owner
            if message.partition not in held:
                self._early.append(event)
                continue
            tp = (message.topic, message.partition)
            self._open[tp].append(event)
            records.append(_record(message))
            advanced.add(tp)
        runtime.process(records)
        for tp in advanced:  # records that were taken before are done at once
            self._acknowledge(*tp)

    def _must_rest(self, topic: str, partition: int) -> bool:
        """Whether a partition's actor takes no more for now: more is taken than is made durable. Faust pauses a
        partition whose actor does not take what it was given."""
        runtime = self.runtime
        return runtime is not None and not self._app.should_stop and runtime.must_rest(topic, partition)

    def _note_resting(self, topic: str, partition: int, *, rests: bool) -> None:
        if rests == ((topic, partition) in self._resting):
            return
        self._resting ^= {(topic, partition)}
        if self.runtime is not None:
            self.runtime.rests(topic, sum(resting == topic for resting, _ in self._resting))

    def _acknowledge(self, topic: str, partition: int) -> None:
        self._progress.set()
        if self.runtime is None:
            return
        upto = self.runtime.processor.committable(topic, partition)
        events = self._open[topic, partition]
        while upto is not None and events and events[0].message.offset < upto:
            events.popleft().ack()

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
        self._early.clear()
        self._progress.set()
        if self.runtime is not None:
            self.runtime.revoke(revoked)


async def batches(stream: Any) -> AsyncIterator[list[Event]]:
    """The events of an agent's stream, not acknowledged, in micro-batches of what is there."""
    batch: list[Event] = []
    async for event in stream.noack().events():
        batch.append(event)
        if len(batch) >= MAX_BATCH or stream.channel.queue.empty():
            yield batch
            batch = []


class RawTopic(Topic):
    """A topic whose agents get bytes: what they hold is for us to judge.

    They get every record, whatever other agents the app has on the topic. When one of those can't decode a record,
    Faust acknowledges it for all agents that it has not been handed to yet, and throws into them instead: the record
    would be gone without a trace, depending on the order of a set.
    """

    async def on_key_decode_error(self, exc: Exception, message: Any) -> None:
        await self._take_back(message)

    async def on_value_decode_error(self, exc: Exception, message: Any) -> None:
        await self._take_back(message)

    async def _take_back(self, message: Any) -> None:
        """Deliver the record after all; its offset waits for our acknowledgement again. Faust's conductor comes here
        in the same step of the loop in which it acknowledged, so nothing was committed in between."""
        consumer: Any = self.app.consumer
        if message.acked:
            message.acked = False
            if message.offset in consumer._acked_index[message.tp]:
                consumer._acked_index[message.tp].discard(message.offset)
                consumer._acked[message.tp].remove(message.offset)
                consumer._n_acked -= 1
            consumer._unacked_messages.add(message)
        message.incref()
        await self.put(await self.decode(message))


def raw_topic(app: faust.App, name: str) -> RawTopic:
    return RawTopic(app, topics=[name], key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")


def _record(message: Any) -> Record:
    headers = message.headers or ()
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        -1 if message.timestamp is None else round(message.timestamp * 1000),
        tuple(headers.items() if isinstance(headers, dict) else headers),
    )
