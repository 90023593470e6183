"""A processor with a manual clock and a device that the test works by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from xgr_stream.config import HistoryConfig, StreamConfig
from xgr_stream.history import HistoryStore, HistoryView
from xgr_stream.metrics import Metrics
from xgr_stream.stream import codec
from xgr_stream.stream.partitioner import partitioner
from xgr_stream.stream.processor import Output, Processor
from xgr_stream.stream.records import Produce, Record
from xgr_stream.testing.clock import ManualClock
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.types import RecommendRequest, RecommendResponse

PARTITIONS = 4
EVENTS, REQUESTS, RESPONSES, DEAD, CHANGELOG = (
    "user-events",
    "rec-requests",
    "rec-responses",
    "rec-dead-letters",
    "xgr-history-changelog",
)


class HandWorker:
    """Keeps what is submitted until `work` is called."""

    def __init__(self) -> None:
        self.engine = NullEngine()
        self.submitted: list[tuple[RecommendRequest, HistoryView | None, Future[RecommendResponse]]] = []
        self.wanted: list[HistoryView] = []
        self.forgotten: list[str] = []

    def submit(
        self, request: RecommendRequest, view: HistoryView | None, deadline: float | None, *, partition: int = 0
    ) -> Future[RecommendResponse]:
        future: Future[RecommendResponse] = Future()
        self.submitted.append((request, view, future))
        return future

    def want_appends(self, views: Iterable[HistoryView]) -> None:
        self.wanted += views

    def forget(self, user_ids: Iterable[str]) -> None:
        self.forgotten += user_ids

    def together(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def work(self) -> int:
        """Answer all that is submitted and not withdrawn; how many that was."""
        submitted, self.submitted = self.submitted, []
        running = [entry for entry in submitted if entry[2].set_running_or_notify_cancel()]
        for request, view, future in running:
            future.set_result(self.engine.answer([(request, view)])[0])
        return len(running)


class Stream:
    """A processor between topics that are lists."""

    def __init__(self, *, restored: bool = True, segment_events: int = 4, **config: Any) -> None:
        history_config = HistoryConfig(keep_events=8, segment_events=segment_events)
        self.config = StreamConfig(history=history_config, **config)
        self.clock = ManualClock()
        self.worker = HandWorker()
        self.metrics = Metrics()
        self.history = self.worker.engine.history = HistoryStore(history_config)
        self.decode_event: Any = None
        self.used: set[str] = set()
        """Topics that the worker reads besides its own."""
        self.wakes = 0
        self.offsets: dict[tuple[str, int], int] = {}
        self.place = partitioner(self.config.partitioner, PARTITIONS)
        self.processor = self.make()
        self.processor.assign(range(PARTITIONS), PARTITIONS)
        if restored:
            for partition in range(PARTITIONS):
                self.processor.restored(partition)

    def make(self) -> Processor:
        processor = Processor(
            self.worker,
            self.history,
            self.config,
            knows_item=self.worker.engine.knows_item,
            clock=self.clock,
            metrics=self.metrics,
            decode_event=self.decode_event,
            uses_topic=lambda topic: topic in self.used,
        )
        processor.on_wake(self._wake)
        return processor

    def _wake(self) -> None:
        self.wakes += 1

    def partition(self, user: str) -> int:
        return 0 if self.place is None else self.place(user.encode())

    def record(
        self,
        topic: str,
        user: str,
        value: dict[str, Any] | bytes | None,
        *,
        key: bytes | None = b"?",
        partition: int | None = None,
        offset: int | None = None,
        age_ms: int = 0,
    ) -> Record:
        """A record of the user, at the next offset of its partition."""
        number = self.partition(user) if partition is None else partition
        at = self.offsets.get((topic, number), 0) if offset is None else offset
        self.offsets[topic, number] = at + 1
        data = codec.encode(value, "msgpack") if isinstance(value, dict) else value
        return Record(topic, number, at, user.encode() if key == b"?" else key, data, self.clock.wall_ms() - age_ms)

    def event(self, user: str, item: str = "item-1", **options: Any) -> Record:
        return self.record(EVENTS, user, {"v": 1, "item_id": item}, **options)

    def request(
        self, user: str, request_id: str = "r", *, fields: dict[str, Any] | None = None, **options: Any
    ) -> Record:
        return self.record(REQUESTS, user, {"v": 1, "request_id": request_id, **(fields or {})}, **options)

    def process(self, *records: Record) -> list[Output]:
        self.processor.process(records)
        return self.processor.poll()

    def answer(self) -> list[Output]:
        """Let the device work; what comes of it."""
        self.worker.work()
        return self.processor.poll()

    def acknowledge(self, outputs: Iterable[Output]) -> list[Output]:
        for output in outputs:
            self.processor.acknowledged(output)
        return self.processor.poll()

    def run(self, *records: Record) -> list[Produce]:
        """Process, compute, publish and acknowledge until nothing is left; all that was written."""
        written: list[Produce] = []
        outputs = self.process(*records) + self.answer()
        while outputs:
            written += produces(outputs)
            outputs = self.acknowledge(outputs)
        return written


def produces(outputs: Iterable[Output]) -> list[Produce]:
    return [produce for output in outputs for produce in output.produces]


def message(produce: Produce) -> dict[str, Any]:
    assert produce.value is not None
    return codec.decode(produce.value, 1 << 30)


def sample(stream: Stream, name: str, **labels: str) -> float:
    value = stream.metrics.registry.get_sample_value(name, labels)
    return 0.0 if value is None else value


def answers(stream: Stream, *records: Record) -> list[dict]:
    """What is written to the responses topic once these records are taken in."""
    return [message(produce) for produce in stream.run(*records) if produce.topic == RESPONSES]
