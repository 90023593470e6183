"""Answers on their way out: encoded, addressed, remembered for a while, and measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from xgr_stream.config import StreamConfig
from xgr_stream.errors import EngineError, InvalidInput, MessageTooLarge, Misplaced, XgrError
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import Clock
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.answers import AnswerKey, RecentAnswers
from xgr_stream.stream.outbox import Outbox, Output
from xgr_stream.stream.partition import Partition
from xgr_stream.stream.records import Produce, Record, key_passed_on, passed_on
from xgr_stream.types import RecommendRequest, RecommendResponse, Status

logger = logging.getLogger(__name__)

ROOM = 20 * 1024
"""Of what a broker takes, for an answer's key, its request's headers (`MAX_HEADER_BYTES`) and what frames a record. A
larger answer would be refused, which stops the worker, and then the next one that reads the request."""


class Replies:
    """Writes responses to the partition of the responses topic that has the request's number."""

    def __init__(self, outbox: Outbox, config: StreamConfig, clock: Clock, metrics: Metrics) -> None:
        self._outbox = outbox
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._recent = RecentAnswers(config.dedup_window_ms, clock)

    def count_own(self, response: RecommendResponse) -> None:
        """Count an answer to a request of this process's own, which nothing is published for."""
        self._count(response, response.stages_ms)
        self._metrics.stage_seconds.observe("total", response.stages_ms["total"] / 1000)

    def _count(self, response: RecommendResponse, stages_ms: Mapping[str, float]) -> None:
        self._metrics.count_request(response.error or response.status.value, response.cache.value)
        for stage, ms in stages_ms.items():
            if stage != "total":
                self._metrics.stage_seconds.observe(stage, ms / 1000)

    def send(
        self,
        partition: Partition,
        records: Iterable[Record],
        request: RecommendRequest,
        response: RecommendResponse,
        stages_ms: Mapping[str, float] | None = None,
    ) -> None:
        """Answer a request that was understood; `records` are those that brought it. `stages_ms` instead of the
        response's own: another response with them would take as long as all of its encoding."""
        stages_ms = response.stages_ms if stages_ms is None else stages_ms
        failure: XgrError | None = None
        try:
            value = self._encoded(response, stages_ms)
            most = self._config.max_answer_bytes - ROOM
            if len(value) > most:
                failure = MessageTooLarge(
                    f"the request must ask for less: its answer takes {len(value)} bytes, and {most} can be written"
                )
        except (TypeError, ValueError, OverflowError) as error:
            logger.exception("the engine's response can't be encoded")
            failure = EngineError(f"the engine's response can't be encoded as {self._config.codec}: {error}")
        if failure is not None:
            response = RecommendResponse.failure(request.request_id, request.user_id, failure)
            stages_ms = response.stages_ms
            value = self._encoded(response, stages_ms)
        self._count(response, stages_ms)
        if response.status is not Status.ERROR:
            self._recent.remember(key_of(partition, request), value, self._clock.wall_ms())
        for record in records:
            self._put(partition, record, request, value)

    def repeat(self, partition: Partition, record: Record, request: RecommendRequest) -> bool:
        """Give the answer that the request got before; False if it has none."""
        value = self._recent.get(key_of(partition, request))
        if value is None:
            return False
        self._put(partition, record, request, value)
        return True

    def refuse(self, partition: Partition, record: Record, message: protocol.Message, error: XgrError) -> None:
        """Answer a request that was not understood. One without an id to answer to becomes a dead letter."""
        if isinstance(error, Misplaced):
            self._metrics.misplaced_records.labels(record.topic).inc()
        request_id, user_id = protocol.sender(message, record.key)
        if request_id is None:
            self._outbox.dead_letter(partition, record, error)
            return
        response = RecommendResponse.failure(request_id, user_id, error)
        self._count(response, response.stages_ms)
        value = self._encoded(response, response.stages_ms)
        key = key_passed_on(record.key) or user_id.encode() or None
        produce = Produce(self._config.topics.responses, partition.number, key, value, passed_on(record.headers))
        self._outbox.put(Output(partition, (produce,), record=record, then=self._published(record)))

    def restore(self, record: Record) -> None:
        """Remember an answer that a former owner of its partition gave. One that can't be read is passed over."""
        if record.value is None:
            return
        try:
            message = codec.decode(record.value, self._config.max_answer_bytes)
            user_id, request_id, status = protocol.answered(message)
        except InvalidInput as error:
            logger.debug("response at %s-%d, %d: %s", record.topic, record.partition, record.offset, error.code)
            return
        if status is not Status.ERROR:
            self._recent.remember(AnswerKey(record.partition, user_id, request_id), record.value, record.timestamp_ms)

    def forget(self, partition: Partition) -> None:
        """Forget the answers given on a partition."""
        self._recent.drop(partition.number)

    def _encoded(self, response: RecommendResponse, stages_ms: Mapping[str, float]) -> bytes:
        return codec.encode(protocol.response_message(response, stages_ms), self._config.codec)

    def _put(self, partition: Partition, record: Record, request: RecommendRequest, value: bytes) -> None:
        key = request.user_id.encode()
        headers = passed_on(record.headers)
        produces = [Produce(self._config.topics.responses, partition.number, key, value, headers)]
        if request.reply_to is not None:
            produces.append(Produce(request.reply_to, None, key, value, headers, required=False))
        self._outbox.put(Output(partition, tuple(produces), record=record, then=self._published(record)))

    def _published(self, record: Record) -> Callable[[], None]:
        """Measures the time from now to the acknowledgement, and the request's whole time."""
        started, timestamp_ms = self._clock.now(), record.timestamp_ms

        def observe() -> None:
            self._metrics.stage_seconds.observe("publish", self._clock.now() - started)
            if timestamp_ms >= 0:
                total_ms = max(0, self._clock.wall_ms() - timestamp_ms)
                self._metrics.stage_seconds.observe("total", total_ms / 1000)

        return observe


def key_of(partition: Partition, request: RecommendRequest) -> AnswerKey:
    return AnswerKey(partition.number, request.user_id, request.request_id)
