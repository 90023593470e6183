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

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

from xgr_stream.config import StreamConfig
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import Clock
from xgr_stream.stream.records import Produce, Record
from xgr_stream.types import RecommendRequest, RecommendResponse, UserEvent


class Worker(Protocol):
    """The part of `scheduler.DeviceWorker` that the processor needs. No call blocks."""

    def submit(
        self, request: RecommendRequest, view: HistoryView | None, deadline: float | None
    ) -> Future[RecommendResponse]: ...

    def want_append(self, view: HistoryView) -> None: ...

    def forget(self, user_ids: Iterable[str]) -> None: ...


class Output:
    """What to write, and the record whose offset waits for it. Opaque to drivers but for `produces`."""

    __slots__ = ("offset", "partition", "produces", "topic")

    topic: str | None
    """Topic of the record that waits for this output; None: nothing waits (clean-up of the changelog)."""
    partition: int
    offset: int
    produces: tuple[Produce, ...]


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
        decode_event: Callable[[Record], UserEvent] | None = None,
    ) -> None:
        """`knows_item` says whether the catalog has an item (only counts and logs depend on it). `decode_event` reads
        the application's own event records; it raises `InvalidInput` for one that it refuses (None: our protocol)."""
        raise NotImplementedError

    # Partitions

    def assign(self, partitions: Iterable[int], num_partitions: int) -> None:
        """Take on these partitions besides those already held; each is `restoring` until `restored`.

        `num_partitions`: of the events topic, which all topics of the recommender share but the dead letters'.
        """
        raise NotImplementedError

    def revoke(self, partitions: Iterable[int]) -> None:
        """Drop these partitions: history, prefixes, pending requests, outputs not polled yet. Nothing of them is
        acknowledged, so the next owner gets it again. In-process requests resolve to `not_owned`. Unheld: ignored."""
        raise NotImplementedError

    @property
    def assigned(self) -> frozenset[int]:
        """The partitions held, restored or not."""
        raise NotImplementedError

    @property
    def restoring(self) -> frozenset[int]:
        """The partitions whose history is still to be restored."""
        raise NotImplementedError

    def restore(self, partition: int, records: Iterable[Record]) -> None:
        """Feed records of the partition's changelog, in their order. Fence records may be among them.

        Raises `HistoryError` on a record that is not ours or of a newer major version.
        """
        raise NotImplementedError

    def restore_answers(self, partition: int, records: Iterable[Record]) -> None:
        """Feed recent records of the responses topic, so that a request redelivered to the partition's new owner is
        answered from memory. Those older than the dedup window, or unreadable, are passed over. Optional."""
        raise NotImplementedError

    def restored(self, partition: int, *, position: int | None = None, end: int | None = None) -> None:
        """The changelog has been fed to its end: check it, then process what was held for this partition.

        `position`: offset of the events partition at which the consumer goes on (all before it was processed), for
        requests that wait for a `min_offset`. `end`: the events partition's end offset; a history that has seen more
        was written for another incarnation of the topic. Raises `HistoryError` on that and on gaps.
        """
        raise NotImplementedError

    def owns(self, user_id: str) -> bool:
        """Whether the user's partition is assigned here. With `partitioner="any"`: whether their history is here."""
        raise NotImplementedError

    # Records

    def process(self, records: Iterable[Record]) -> None:
        """Take in consumed records of the events and requests topics, each topic partition's in offset order.

        Records of partitions that are not assigned are passed over (they were fetched before a revoke), and so are
        those whose offset was already taken. Never raises for what a record holds.
        """
        raise NotImplementedError

    def submit(self, request: RecommendRequest) -> Future[RecommendResponse]:
        """Answer a request of this process's own, on the same path as one from the topic. Never raises; the future
        is resolved inside `poll`. A user who is not owned here gets the error response `not_owned` at once."""
        raise NotImplementedError

    def poll(self) -> list[Output]:
        """What has become ready since the last call, in the order in which it must be written."""
        raise NotImplementedError

    def acknowledged(self, output: Output) -> None:
        """Every required produce of `output` is durable. Outputs of partitions since revoked are ignored."""
        raise NotImplementedError

    def committable(self, topic: str, partition: int) -> int | None:
        """The offset to commit for a topic partition (of the next record to read); None: nothing to commit yet."""
        raise NotImplementedError

    def backlog(self, topic: str, partition: int) -> int:
        """Records taken from a topic partition and not yet acknowledged, to pause its consumption by."""
        raise NotImplementedError

    # Time and the end

    def on_wake(self, wake: Callable[[], None]) -> None:
        """Call `wake` when `poll` will have something: at most once between two polls, from any thread."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """When to poll even if not woken, on `Clock.now()`; None: no request is waiting."""
        raise NotImplementedError

    @property
    def pending(self) -> int:
        """Requests taken and not yet answered."""
        raise NotImplementedError

    def close(self) -> None:
        """Take nothing more: later records stay unacknowledged, for the next worker. What was taken goes on."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Answer every request still pending with `shutting_down` (poll once more afterwards)."""
        raise NotImplementedError
