"""Requests: record → validation → device → response. Each is answered once, at its deadline at the latest."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import astuple, replace
from itertools import count
from typing import Any, Protocol

from xgr_stream.config import StreamConfig, is_topic_name
from xgr_stream.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    InvalidRequest,
    NotOwned,
    OverCapacity,
    ShuttingDown,
    XgrError,
)
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.scheduler.clock import Clock
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.answers import AnswerKey
from xgr_stream.stream.outbox import Outbox
from xgr_stream.stream.partition import Partition
from xgr_stream.stream.partitioner import Placement
from xgr_stream.stream.records import Record, header_bytes, passed_on
from xgr_stream.stream.replies import Replies, key_of
from xgr_stream.types import RecommendRequest, RecommendResponse

logger = logging.getLogger(__name__)

RECORD_BYTES, ID_BYTES = 500, 64
"""Of a record that waits, beside its headers, and of each string in a message, beside its bytes."""
MAX_TIMEOUT_MS = 3_600_000
"""A longer timeout counts as this one."""


class Computing(Protocol):
    """A response to come: `scheduler.promise.Promise` is one, a `concurrent.futures.Future` another."""

    def done(self) -> bool: ...

    def cancel(self) -> bool: ...

    def result(self, timeout: float | None = None) -> RecommendResponse: ...

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None: ...


class Worker(Protocol):
    """The part of `scheduler.DeviceWorker` that the stream needs. No call blocks."""

    def submit(
        self, request: RecommendRequest, view: HistoryView | None, deadline: float | None, *, partition: int = 0
    ) -> Computing: ...

    def want_appends(self, views: Iterable[HistoryView]) -> None: ...

    def forget(self, user_ids: Iterable[str]) -> None: ...

    def together(self) -> AbstractContextManager[None]: ...


class Pending:
    """A request that was taken and is not answered yet."""

    __slots__ = (
        "answered",
        "computing",
        "deadline",
        "forgets",
        "future",
        "key",
        "num_bytes",
        "partition",
        "records",
        "request",
        "taken_at",
    )

    def __init__(self, request: RecommendRequest, partition: Partition, deadline: float, taken_at: float) -> None:
        self.request = request
        self.key = key_of(partition, request)
        self.partition = partition
        self.deadline = deadline
        self.taken_at = taken_at
        self.answered = False
        self.forgets = False
        """Whether its user was forgotten meanwhile, and the prefix that it was answered from must go."""
        self.records: list[Record] = []
        """The records that wait for the answer, without what it does not need of them: one, or more when it was
        delivered again meanwhile."""
        self.num_bytes = 0
        """What the request and its records take."""
        self.future: Future[RecommendResponse] | None = None
        """The caller's, for a request of this process's own."""
        self.computing: Computing | None = None
        """The device's; None while the request waits for its history or its `min_offset`."""


class Requests:
    """Takes in requests and answers them. All on the loop's thread, but for the device's word that it is done."""

    def __init__(
        self,
        worker: Worker,
        history: HistoryStore,
        outbox: Outbox,
        replies: Replies,
        config: StreamConfig,
        *,
        placement: Placement,
        clock: Clock,
        uses_topic: Callable[[str], bool],
    ) -> None:
        self._worker = worker
        self._history = history
        self._outbox = outbox
        self._replies = replies
        self._config = config
        self._placement = placement
        self._clock = clock
        self._own_topics = frozenset(astuple(config.topics))
        self._uses_topic = uses_topic
        self._pending: dict[AnswerKey, Pending] = {}
        self._num_bytes = 0
        """Of all that is pending."""
        self._waiting: dict[Partition, dict[Pending, None]] = {}
        """Those of them that wait for their history or their `min_offset`, in the order in which they came."""
        self._deadlines: list[tuple[float, int, AnswerKey]] = []
        """With the keys alone: entries outlive their requests, which may be large."""
        self._sequence = count()
        self._changed: deque[Pending] = deque()
        """Those that are to be looked at again."""

    def __len__(self) -> int:
        """Requests taken and not yet answered."""
        return len(self._pending)

    # In

    def take(self, partition: Partition, record: Record) -> None:
        """Take in one record of the requests topic: an answer will come, or it becomes a dead letter. Never raises."""
        try:
            message = codec.decode(record.value, self._config.max_message_bytes)
        except InvalidInput as error:
            self._outbox.dead_letter(partition, record, error)
            return
        try:
            request = self._read(record, message)
        except XgrError as error:
            self._replies.refuse(partition, record, message, error)
        except Exception:
            logger.exception("request at %s-%d, offset %d", record.topic, record.partition, record.offset)
            failure = XgrError("the worker failed to read this request; its log says why")
            self._replies.refuse(partition, record, message, failure)
        else:
            self._take(partition, record, request)

    def submit(self, partition: Partition, request: RecommendRequest) -> Future[RecommendResponse]:
        """Take in a request of this process's own."""
        future: Future[RecommendResponse] = Future()
        try:
            pending = self._admit(partition, request, self._clock.wall_ms())
        except XgrError as error:
            future.set_result(RecommendResponse.failure(request.request_id, request.user_id, error))
        else:
            pending.future = future
            future.add_done_callback(lambda _: self._look_at(pending) if future.cancelled() else None)
            self._start(pending)
        return future

    def _read(self, record: Record, message: protocol.Message) -> RecommendRequest:
        request = protocol.parse_request(message, record.key)
        self._placement.check(request.user_id, record.partition)
        topic = request.reply_to
        if topic is not None and not self._may_reply_to(topic):
            raise InvalidRequest(f"reply_to must be a topic of the caller's own, not {topic!r:.80}")
        return request

    def _may_reply_to(self, topic: str) -> bool:
        """A response is the tombstone of an item among a catalog's updates. Topics of Kafka's own begin with two
        underscores: what writes there fails for good."""
        used = topic in self._own_topics or self._uses_topic(topic)
        return is_topic_name(topic) and not topic.startswith("__") and not used

    def _take(self, partition: Partition, record: Record, request: RecommendRequest) -> None:
        if self._replies.repeat(partition, record, request):
            return
        pending = self._pending.get(key_of(partition, request))
        is_new = pending is None
        kept = record._replace(key=None, value=None, headers=passed_on(record.headers))
        num_bytes = RECORD_BYTES + header_bytes(kept.headers) + (_bytes_of(record, request) if is_new else 0)
        try:
            self._check_room(num_bytes)
            if pending is None:
                pending = self._admit(partition, request, record.timestamp_ms)
        except XgrError as error:
            response = RecommendResponse.failure(request.request_id, request.user_id, error)
            self._replies.send(partition, [record], request, response)
            return
        pending.records.append(kept)
        pending.num_bytes += num_bytes
        self._num_bytes += num_bytes
        if is_new:
            self._start(pending)

    def _check_room(self, num_bytes: int) -> None:
        """Raises `OverCapacity` if so many bytes more are not to wait. A request by itself always may."""
        if self._pending and self._num_bytes + num_bytes > self._config.max_waiting_bytes:
            raise OverCapacity(
                f"requests of {self._num_bytes} bytes are waiting, and max_waiting_bytes is "
                f"{self._config.max_waiting_bytes}; try again later"
            )

    def _admit(self, partition: Partition, request: RecommendRequest, timestamp_ms: int) -> Pending:
        """Note the request and its deadline, which counts from `timestamp_ms` (negative: unknown, from now)."""
        if request.min_offset_partition not in (None, partition.number):
            raise InvalidRequest(
                f"min_offset_partition must be {partition.number}, where this user's requests and events are, not "
                f"{request.min_offset_partition}: `after` must be an event of the same user, in the events topic"
            )
        if len(self._pending) >= self._config.max_pending_requests:
            raise OverCapacity(f"{len(self._pending)} requests are waiting, max_pending_requests; try again later")
        now, wall_ms = self._clock.now(), self._clock.wall_ms()
        timeout_ms = self._config.default_timeout_ms if request.timeout_ms is None else request.timeout_ms
        timeout_ms = min(timeout_ms, MAX_TIMEOUT_MS)
        age_ms = max(0, wall_ms - timestamp_ms) if timestamp_ms >= 0 else 0
        if age_ms >= timeout_ms:
            raise DeadlineExceeded(f"the request is {age_ms} ms old and had {timeout_ms} ms")
        pending = Pending(request, partition, now + (timeout_ms - age_ms) / 1000, now)
        if pending.key in self._pending:
            raise InvalidRequest("request_id must not be that of a request still pending")
        self._pending[pending.key] = pending
        heapq.heappush(self._deadlines, (pending.deadline, next(self._sequence), pending.key))
        if self._deadlines[0][0] == pending.deadline:
            self._outbox.wake()  # whoever sleeps until the next deadline sleeps until a later one
        return pending

    def _start(self, pending: Pending) -> None:
        """Hand the request to the device, or have it wait for its history."""
        partition, min_offset = pending.partition, pending.request.min_offset
        if not partition.restored or (min_offset is not None and partition.events_seen < min_offset):
            self._waiting.setdefault(partition, {})[pending] = None
            return
        view = self._history.view(pending.request.user_id)
        pending.computing = self._worker.submit(pending.request, view, pending.deadline, partition=partition.number)
        if pending.computing.done():  # refused: it hears of it now, not when all that came with it has been taken in
            self._answer(pending, _result(pending.request, pending.computing))
        else:
            pending.computing.add_done_callback(lambda _: self._look_at(pending))

    def _look_at(self, pending: Pending) -> None:
        """The device has computed it, or its caller has withdrawn it. On any thread."""
        self._changed.append(pending)
        self._outbox.wake()

    def release(self, partition: Partition) -> None:
        """The partition's history has moved on: start the requests that waited for that."""
        for pending in self._waiting.pop(partition, ()):
            self._start(pending)

    # Out

    def collect(self) -> None:
        """Answer what the device has computed, and what has reached its deadline; drop what was withdrawn."""
        while self._changed:
            pending = self._changed.popleft()
            if pending.answered:
                continue
            if pending.computing is not None and pending.computing.done():
                self._answer(pending, _result(pending.request, pending.computing))
            elif not pending.records:  # else it has come over the topic, too
                self._close(pending)
        now = self._clock.now()
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            pending = self._pending[self._deadlines[0][2]]
            what = "the device" if pending.computing else "the user's history"
            self._fail(pending, DeadlineExceeded(f"the deadline passed while the request waited for {what}"))

    def next_deadline(self) -> float | None:
        """The earliest deadline of a pending request."""
        if len(self._deadlines) > 2 * len(self._pending) + 1_000:
            self._deadlines = [entry for entry in self._deadlines if self._is_open(entry)]
            heapq.heapify(self._deadlines)
        while self._deadlines and not self._is_open(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _is_open(self, entry: tuple[float, int, AnswerKey]) -> bool:
        """Whether a request is pending that has this deadline."""
        deadline, _, key = entry
        pending = self._pending.get(key)
        return pending is not None and pending.deadline == deadline

    def fail_all(self) -> None:
        """Answer everything that is pending with `shutting_down`."""
        for pending in list(self._pending.values()):
            self._fail(pending, ShuttingDown("the worker shut down before this request was answered"))

    def hurry(self, partition: Partition, offset: int) -> None:
        """Refuse the request that came with this offset, if it is pending."""
        for pending in self._pending.values():
            if pending.partition is partition and pending.records and pending.records[0].offset == offset:
                self._fail(pending, OverCapacity("answers to too many requests behind this one wait for its own"))
                return

    def forget(self, user_id: str) -> None:
        """The user was forgotten: what requests taken before still compute is not kept."""
        for pending in self._pending.values():
            if pending.request.user_id == user_id:
                pending.forgets = pending.forgets or pending.computing is not None

    def drop(self, partition: Partition) -> None:
        """Forget the partition's requests without an answer: the next owner gets them. Our own callers are told."""
        for pending in [pending for pending in self._pending.values() if pending.partition is partition]:
            pending.records.clear()
            self._fail(pending, NotOwned(f"partition {partition.number} moved to another worker"))
        self._waiting.pop(partition, None)

    def _fail(self, pending: Pending, error: XgrError) -> None:
        request = pending.request
        self._answer(pending, RecommendResponse.failure(request.request_id, request.user_id, error))

    def _answer(self, pending: Pending, response: RecommendResponse) -> None:
        """Give the response to all who wait for it, and take the request off the books."""
        self._close(pending)
        if pending.future is None and not pending.records:
            return
        stages_ms = self._stages_ms(pending, response)
        if pending.future is not None and pending.future.set_running_or_notify_cancel():
            own = replace(response, stages_ms=stages_ms)
            self._replies.count_own(own)
            pending.future.set_result(own)
        if pending.records:
            self._replies.send(pending.partition, pending.records, pending.request, response, stages_ms)

    def _close(self, pending: Pending) -> None:
        """Take the request off the books, and from the device."""
        pending.answered = True
        del self._pending[pending.key]
        if (waiting := self._waiting.get(pending.partition)) is not None:
            waiting.pop(pending, None)
        self._num_bytes -= pending.num_bytes
        if pending.computing is not None:
            pending.computing.cancel()
        if pending.forgets:
            self._worker.forget([pending.request.user_id])

    def _stages_ms(self, pending: Pending, response: RecommendResponse) -> dict[str, float]:
        """The response's stages with the time since its request was taken; what the engine's don't name was waiting."""
        total_ms = (self._clock.now() - pending.taken_at) * 1000
        wait_ms = max(0.0, total_ms - sum(response.stages_ms.values()))
        return {"wait": wait_ms, **response.stages_ms, "total": total_ms}


def _bytes_of(record: Record, request: RecommendRequest) -> int:
    """What a request takes that came in this record."""
    return len(record.value or b"") + ID_BYTES * (len(request.filter.exclude) + len(request.candidates or ()))


def _result(request: RecommendRequest, computing: Computing) -> RecommendResponse:
    try:
        return computing.result(0)
    except Exception as error:  # noqa: BLE001, it becomes the request's answer
        failure = EngineError(f"the device worker failed: {type(error).__name__}")
    return RecommendResponse.failure(request.request_id, request.user_id, failure)
