"""The stream's logic without a stream: records in, records to produce and offsets to commit out.

The processor does no I/O. It knows no broker, no Faust and no event loop; a *driver* feeds it and carries out what it
asks for:

    wake = asyncio.Event()
    processor.on_wake(lambda: loop.call_soon_threadsafe(wake.set))

    processor.assign({0, 1}, num_partitions=4)                  # on rebalance
    for partition in processor.restoring:                       # read the changelog up to a fence
        processor.restore(partition, changelog_records)         # as often as batches come
        processor.restored(partition, position=consumer_position, end=end_offset)

    processor.process(records)                                  # whenever the consumer has some

    while True:                                                 # one sender task
        await wait_for(wake.wait(), until=processor.next_deadline()); wake.clear()
        for output in processor.poll():
            ... send output.produces in order; when every required one is acknowledged by the broker:
            processor.acknowledged(output)
        ... commit processor.committable(topic, partition) now and then

What a driver must hold to:

* every method is called on one thread (the loop's); only the wake callback may come from another;
* produces are handed to the producer in the order in which `poll` gave them (an ordered producer: acks=all, and
  idempotent or with one batch in flight per partition), because the changelog is a log;
* a required produce that fails is retried until it succeeds, or the worker stops. An output is acknowledged only
  when all its required produces are, and never because a task was cancelled;
* offsets are committed up to `committable` and no further.

`process` never raises for what a record holds: it becomes an error response or a dead letter. Two methods raise:
`restore` and `restored`, `HistoryError`, when the changelog does not add up; that partition must not be served.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import NamedTuple

from xgr_stream.config import StreamConfig
from xgr_stream.errors import HistoryError, NotOwned, ShuttingDown, TopologyError, XgrError
from xgr_stream.history import HistoryStore, PackedUsers, Watermark
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import Clock
from xgr_stream.stream import changelog
from xgr_stream.stream.changelog import KeyValue
from xgr_stream.stream.changelog_batch import BatchReader
from xgr_stream.stream.ingest import DecodeEvent, Ingest
from xgr_stream.stream.offsets import OffsetTracker
from xgr_stream.stream.outbox import Outbox, Output
from xgr_stream.stream.partition import Partition
from xgr_stream.stream.partitioner import Placement
from xgr_stream.stream.progress import Progress
from xgr_stream.stream.records import Record, num_bytes
from xgr_stream.stream.replies import Replies
from xgr_stream.stream.requests import Requests, Worker
from xgr_stream.types import RecommendRequest, RecommendResponse

__all__ = ["DecodeEvent", "Output", "Processor", "Worker"]


class Mark(NamedTuple):
    """A point in the life of a held partition."""

    partition: Partition
    event: int
    output: int


class Processor:
    """Events and requests of the assigned partitions, up to records to produce. See the module's contract.

    A partition here is a number: the partitions of that number of the events, requests, responses and changelog
    topics belong together and are assigned together.
    """

    def __init__(
        self,
        worker: Worker,
        history: HistoryStore,
        config: StreamConfig,
        *,
        knows_item: Callable[[str], bool],
        clock: Clock,
        metrics: Metrics,
        decode_event: DecodeEvent | None = None,
        uses_topic: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`knows_item` says whether the catalog has an item (only counts and logs depend on it). `decode_event` reads
        the application's own event records; it raises `InvalidInput` for one that it refuses (None: our protocol).
        `uses_topic`: whether the worker reads this topic besides those of `config`, so that no response may go there.
        """
        self._worker = worker
        self._history = history
        self._log = BatchReader(history)
        self._topics = config.topics
        self._warm_users = config.warm_users
        self._metrics = metrics
        self._partitions: dict[int, Partition] = {}
        self.early_bytes = 0
        """Of events that wait for their partition's history."""
        self._placement = Placement(config.partitioner)
        self._outbox = Outbox(config, metrics)
        self._ingest = Ingest(
            history,
            self._outbox,
            config,
            placement=self._placement,
            knows_item=knows_item,
            decode_event=decode_event,
            on_forget=self._forget,
            metrics=metrics,
        )
        self._replies = Replies(self._outbox, config, clock, metrics)
        self._requests = Requests(
            *(worker, history, self._outbox, self._replies, config),
            placement=self._placement,
            clock=clock,
            uses_topic=uses_topic,
        )
        self._closed = False

    # Partitions

    def assign(
        self, partitions: Iterable[int], num_partitions: int, begin: Mapping[str, Progress] | None = None
    ) -> None:
        """Take on these partitions besides those already held; each is `restoring` until `restored`.

        `num_partitions`: of the events topic, which all topics of the recommender share but the dead letters'. `begin`:
        how far each topic's records were done when they were committed; those are not taken again.
        """
        self._placement.set_partitions(num_partitions)
        for number in partitions:
            if number not in self._partitions:
                self._partitions[number] = partition = Partition(number)
                for topic, progress in (begin or {}).items():
                    self._tracker(partition, topic).begin(progress)

    def revoke(self, partitions: Iterable[int]) -> None:
        """Drop these partitions: history, prefixes, pending requests, outputs not polled yet. Nothing of them is
        acknowledged, so the next owner gets it again. In-process requests resolve to `not_owned`. Unheld: ignored."""
        for number in partitions:
            partition = self._partitions.pop(number, None)
            if partition is None:
                continue
            partition.held = False
            self._note_early(partition, -partition.early_bytes)
            self._requests.drop(partition)
            self._replies.forget(partition)
            self._worker.forget(self._history.drop(number))
        self._rest()
        self._report()

    @property
    def assigned(self) -> frozenset[int]:
        """The partitions held, restored or not."""
        return frozenset(self._partitions)

    @property
    def restoring(self) -> frozenset[int]:
        """The partitions whose history is still to be restored."""
        return frozenset(number for number, partition in self._partitions.items() if not partition.restored)

    def restore(self, partition: int, records: Iterable[KeyValue]) -> None:
        """Feed records of the partition's changelog, in their order. Fence records may be among them.

        Raises `HistoryError` on a record that is not ours or of a newer major version.
        """
        if partition in self.restoring:
            self._log.feed(partition, records)

    def settle(self, partition: int) -> Iterator[None]:
        """Make histories of what was fed, in steps of some milliseconds. Nothing may be fed in between; what is fed
        later takes longer. Optional: `restored` does it otherwise, at once."""
        if partition in self.restoring:
            self._log.forget_users(partition)
            yield from self._history.restoring(partition).settle()

    def must_settle(self, partition: int) -> bool:
        """Whether so much was fed that it should be settled before more is, for its memory."""
        return partition in self.restoring and self._history.restoring(partition).full

    def begin_restore(
        self,
        partition: int,
        packed: Iterable[PackedUsers],
        forgotten: dict[bytes, int],
        watermarks: Iterable[Watermark],
    ) -> None:
        """Begin with what a snapshot held. To `restore` is then what the changelog got after it."""
        if partition in self.restoring:
            self._history.restoring(partition).begin_with(packed, forgotten, watermarks)

    def restart_restore(self, partition: int) -> None:
        """Drop what was restored of a partition whose restore failed; it is to be fed from the start."""
        if partition in self.restoring:
            self._history.drop(partition)

    def _rest(self) -> None:
        if not self.restoring:
            self._log.rest()

    def restore_answers(self, partition: int, records: Iterable[Record]) -> None:
        """Feed recent records of the responses topic, so that a request redelivered to the partition's new owner is
        answered from memory. Those older than the dedup window, or unreadable, are passed over. Optional."""
        if partition in self._partitions:
            for record in records:
                self._replies.restore(record)

    def restored(self, partition: int, *, position: int | None = None, end: int | None = None) -> None:
        """The changelog has been fed to its end: check it, then process what was held for this partition. The most
        recently active users are offered for warming first.

        `position`: offset of the events partition at which the consumer goes on (all before it was processed), for
        requests that wait for a `min_offset`. `end`: the events partition's end offset; a history that has seen more
        was written for another incarnation of the topic. Raises `HistoryError` on that and on gaps.
        """
        state = self._partitions.get(partition)
        if state is None or state.restored:
            return
        recent = self._history.restoring(partition).recent(self._warm_users)
        stale = self._history.finish_restore(partition)
        last_offset = self._history.last_offset(partition)
        if end is not None and last_offset >= end:
            raise HistoryError(
                f"{self._topics.events}-{partition} ends at {end}, but its history includes offset {last_offset}: the "
                "topic was recreated or truncated; name a new changelog topic, or delete the old one's records"
            )
        state.restored = True
        self._rest()
        state.events_seen = max(last_offset, -1 if position is None else position - 1)
        self._ingest.tombstones(state, changelog.stale_entries(stale))
        self._want_appends(recent)
        early, state.early = state.early, []
        self._note_early(state, -state.early_bytes)
        self._take_events({state: early})

    def holds(self, partition: int) -> bool:
        """Whether the partition is assigned, restored or not."""
        return partition in self._partitions

    def is_restored(self, partition: int) -> bool:
        """Whether the partition is assigned, and its history complete."""
        state = self._partitions.get(partition)
        return state is not None and state.restored

    def mark(self, partition: int) -> Mark | None:
        """How far a partition's history has come now; None: it is not ours, or not restored."""
        state = self._partitions.get(partition)
        if state is None or not state.restored:
            return None
        return Mark(state, state.events.last_taken, state.outputs.last_taken)

    def durable(self, mark: Mark) -> bool:
        """Whether all that the partition's history held at the mark is in its changelog. Never, once it is revoked."""
        state = mark.partition
        return state.held and state.events.done(mark.event) and state.outputs.done(mark.output)

    def owns(self, user_id: str) -> bool:
        """Whether the user's partition is assigned here. With `partitioner="any"`: whether their history is here."""
        return self._partition_of(user_id) is not None

    # Records

    def process(self, records: Iterable[Record]) -> None:
        """Take in consumed records of the events and requests topics, each topic partition's in offset order.

        Records of partitions that are not assigned are passed over (they were fetched before a revoke), and so are
        those whose offset was already taken. Never raises for what a record holds.
        """
        if not self._closed:
            with self._worker.together():
                self._process(records)

    def _process(self, records: Iterable[Record]) -> None:
        events: dict[Partition, list[Record]] = {}
        requests_topic, partitions = self._topics.requests, self._partitions
        topic, number, partition, take = "", -1, None, None
        for record in records:
            if record.partition != number or record.topic != topic:  # seldom: they come by topic partition
                topic, number = record.topic, record.partition
                partition = partitions.get(number)
                take = None if partition is None else self._tracker(partition, topic).take
            if partition is None or take is None or not take(record.offset):
                continue
            if topic == requests_topic:
                if events:
                    self._take_events(events)  # a request sees every event that came before it
                self._requests.take(partition, record)
            elif partition.restored:
                events.setdefault(partition, []).append(record)
            else:
                partition.early.append(record)
                self._note_early(partition, num_bytes(record))
        if events:
            self._take_events(events)

    def _note_early(self, partition: Partition, more: int) -> None:
        partition.early_bytes += more
        self.early_bytes += more

    def submit(self, request: RecommendRequest) -> Future[RecommendResponse]:
        """Answer a request of this process's own, on the same path as one from the topic. Never raises; the future
        is resolved inside `poll`, or at once for a request that is refused: over capacity, or `not_owned` for a user
        who is not owned here."""
        partition = self._partition_of(request.user_id)
        if self._closed or partition is None:
            error: XgrError = NotOwned("the user's partition is not assigned to this worker")
            if self._closed:
                error = ShuttingDown("the worker is shutting down")
            future: Future[RecommendResponse] = Future()
            future.set_result(RecommendResponse.failure(request.request_id, request.user_id, error))
            return future
        return self._requests.submit(partition, request)

    def poll(self) -> list[Output]:
        """What has become ready since the last call, in the order in which it must be written."""
        self._outbox.open()
        self._requests.collect()
        return self._outbox.take()

    def acknowledged(self, output: Output) -> None:
        """Every required produce of `output` is durable. Outputs of partitions since revoked are ignored."""
        if not output.partition.held:
            return
        if output.topic is not None:
            self._tracker(output.partition, output.topic).acknowledge_all(output.offsets)
        if output.then is not None:
            output.then()
        output.partition.outputs.acknowledge(output.number)

    def committable(self, topic: str, partition: int) -> int | None:
        """The offset to commit for a topic partition (of the next record to read); None: nothing to commit yet."""
        held = self._partitions.get(partition)
        return None if held is None else self._tracker(held, topic).committable

    def progress(self, partition: int, outputs: Collection[Output] = ()) -> dict[str, Progress]:
        """How far each topic's records of a partition would be done if these outputs were durable too."""
        held = self._partitions.get(partition)
        if held is None:
            return {}
        found = {}
        for topic in (self._topics.events, self._topics.requests):
            written = [offset for output in outputs if output.topic == topic for offset in output.offsets]
            if (progress := self._tracker(held, topic).progress(written)) is not None:
                found[topic] = progress
        return found

    def backlog(self, topic: str, partition: int) -> int:
        """Records taken from a topic partition and not yet acknowledged, to pause its consumption by."""
        held = self._partitions.get(partition)
        return 0 if held is None else self._tracker(held, topic).pending

    def events_behind(self, partition: int, end: int) -> int:
        """Offsets of an events partition that ends at `end` which are not processed yet."""
        held = self._partitions.get(partition)
        return 0 if held is None else max(0, end - 1 - held.events_seen)

    # Time and the end

    def on_wake(self, wake: Callable[[], None]) -> None:
        """Call `wake` when `poll` will have something: at most once between two polls, from any thread."""
        self._outbox.on_wake(wake)

    def next_deadline(self) -> float | None:
        """When to poll even if not woken, on `Clock.now()`; None: no request is waiting."""
        return self._requests.next_deadline()

    @property
    def pending(self) -> int:
        """Requests taken and not yet answered."""
        return len(self._requests)

    def close(self) -> None:
        """Take nothing more: later records stay unacknowledged, for the next worker. What was taken goes on."""
        self._closed = True

    def hurry(self, partition: int, offset: int) -> None:
        """Refuse the request that came with this offset, if it still waits: it holds up all that came after it."""
        held = self._partitions.get(partition)
        if held is not None:
            self._requests.hurry(held, offset)

    def abandon(self) -> None:
        """Answer every request still pending with `shutting_down` (poll once more afterwards)."""
        self._requests.collect()
        self._requests.fail_all()

    def _take_events(self, events: dict[Partition, list[Record]]) -> None:
        """Process and remove what is in `events`."""
        grown: list[str] = []
        taken = dict(events)
        events.clear()
        for partition, records in taken.items():
            grown += self._ingest.take(partition, records)
        self._want_appends(grown)
        for partition in taken:
            self._requests.release(partition)
        self._report()

    def _forget(self, user_id: str) -> None:
        """Drop the user's prefix, and whatever prefix the requests that are under way may yet make of it."""
        self._worker.forget([user_id])
        self._requests.forget(user_id)

    def _want_appends(self, user_ids: Iterable[str]) -> None:
        views = [view for user_id in user_ids if (view := self._history.view(user_id)) is not None]
        if views:
            self._worker.want_appends(views)

    def _tracker(self, partition: Partition, topic: str) -> OffsetTracker:
        if topic == self._topics.events:
            return partition.events
        if topic == self._topics.requests:
            return partition.requests
        raise TopologyError(f"topic must be {self._topics.events!r} or {self._topics.requests!r}, not {topic!r}")

    def _partition_of(self, user_id: str) -> Partition | None:
        number = self._placement.partition(user_id)
        if number is None:
            number = self._history.partition(user_id)
        return None if number is None else self._partitions.get(number)

    def _report(self) -> None:
        self._metrics.history_users.set(self._history.num_users)
        self._metrics.history_bytes.set(self._history.memory_bytes)
