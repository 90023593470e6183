"""One partition's transactions: what is in one, what stays behind, what its failure does. The test plays the broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata

from tests.stream.batch import Batch
from tests.stream.harness import REQUESTS, Stream, sample
from tests.stream.transactional import transactional_publisher
from tests.stream.waiting import settle, until
from xgr_stream.config import TransactionConfig
from xgr_stream.stream.offsets import OffsetTracker
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.partition import Partition
from xgr_stream.stream.progress import MAX_AHEAD, Progress
from xgr_stream.stream.records import Produce, Record
from xgr_stream.stream.transaction import Writer

NUMBER = 3
PLACED = 2
"""The partition that keys are placed in."""


class Producer:
    """Notes what happens in which order. `fails` is raised by the next commit."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.offsets: list[dict[TopicPartition, OffsetAndMetadata]] = []
        self.fails: Exception | None = None
        self.client = SimpleNamespace()
        self._txn_manager = SimpleNamespace(maybe_add_partition_to_txn=lambda tp: self.log.append(("covers", tp)))

    async def begin_transaction(self) -> None:
        self.log.append("begin")

    async def commit_transaction(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.log.append("commit")

    async def abort_transaction(self) -> None:
        self.log.append("abort")

    async def stop(self) -> None:
        self.log.append("stop")

    def create_batch(self) -> Batch:
        return Batch(2)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        return self._written((topic, partition, *batch.values), TopicPartition(topic, partition))

    async def send(self, topic: str, value: bytes, key: bytes | None, **_: Any) -> asyncio.Future[Any]:
        return self._written((topic, None, value), TopicPartition(topic, PLACED))

    async def send_offsets_to_transaction(self, offsets: dict[TopicPartition, OffsetAndMetadata], group: str) -> None:
        self.offsets.append(offsets)

    def _written(self, what: object, tp: TopicPartition) -> asyncio.Future[Any]:
        self.log.append(what)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(SimpleNamespace(topic_partition=tp))
        return future


class Publisher:
    """What a writer asks of its publisher: one topic of requests, whose offsets were all taken."""

    def __init__(self, taken: Collection[int]) -> None:
        self.config = TransactionConfig(commit_interval_ms=300)
        self.group_id = "group"
        self.topics = ("events", "requests")
        self.copies = SimpleNamespace(takes=lambda topic: topic == "copies", written=lambda topics: None)
        self.done: list[Output] = []
        self.failures: list[tuple[Exception, set[str]]] = []
        self._trackers = {"events": OffsetTracker(), "requests": OffsetTracker()}
        for tracker in self._trackers.values():
            for offset in taken:
                tracker.take(offset)

    def progress(self, number: int, outputs: Collection[Output]) -> dict[str, Progress]:
        found = {}
        for topic, tracker in self._trackers.items():
            progress = tracker.progress([output.offsets[0] for output in outputs if output.topic == topic])
            assert progress is not None
            found[topic] = progress
        return found

    def hurry(self, number: int, offset: int) -> None:
        """Nobody can be."""

    def committed(self, writer: Writer, outputs: Sequence[Output]) -> None:
        for output in outputs:
            if output.topic is not None:
                self._trackers[output.topic].acknowledge(output.offsets[0])
        self.done += outputs

    def failed(self, writer: Writer, error: Exception, copies: set[str]) -> None:
        self.failures.append((error, copies))


@pytest_asyncio.fixture
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[SimpleNamespace]:
    publisher, producer = Publisher(getattr(request, "param", range(10))), Producer()
    start = publisher.progress(NUMBER, ())
    writer = Writer(publisher, NUMBER, producer, start)  # type: ignore[arg-type]
    yield SimpleNamespace(publisher=publisher, producer=producer, writer=writer)
    await writer.close()


PARTITION = Partition(NUMBER)


def output(topic: str, offset: int, *produces: Produce) -> Output:
    return Output(PARTITION, produces, record=Record(topic, NUMBER, offset, None, None, 0))


def delta(value: bytes) -> Produce:
    return Produce("changelog", NUMBER, b"key", value)


async def test_all_that_is_ready_is_in_one_transaction_with_its_offsets(stage: SimpleNamespace) -> None:
    for offset in range(3):
        stage.writer.put(output("events", offset, delta(b"%d" % offset)))
    stage.writer.put(output("requests", 0, Produce("responses", NUMBER, None, b"answer")))
    stage.writer.put(output("requests", 1, Produce("dead", None, None, b"letter")))
    await settle()
    log = stage.producer.log
    assert (log[0], log[-1]) == ("begin", "commit")
    assert {*log[1:-1]} == {
        ("changelog", NUMBER, b"0", b"1"),
        ("changelog", NUMBER, b"2"),
        ("responses", NUMBER, b"answer"),
        ("dead", None, b"letter"),
    }
    assert log.index(("changelog", NUMBER, b"0", b"1")) < log.index(("changelog", NUMBER, b"2"))
    assert stage.producer.offsets == [
        {
            TopicPartition("events", NUMBER): OffsetAndMetadata(3, ""),
            TopicPartition("requests", NUMBER): OffsetAndMetadata(2, ""),
        }
    ]
    assert len(stage.publisher.done) == 5


async def test_each_covers_what_the_one_before_wrote_to_and_commits_offsets(stage: SimpleNamespace) -> None:
    """A broker may have left that open. Copies are out of it: whoever asked may have deleted their topic."""
    copy = Produce("copies", None, None, b"answer", required=False)
    stage.writer.put(output("requests", 0, Produce("responses", NUMBER, None, b"answer"), copy))
    stage.writer.put(output("requests", 1, Produce("dead", None, None, b"letter")))
    await settle()
    assert covered(stage.producer) == []
    stage.writer.put(Output(PARTITION, [delta(b"segment")]))
    await asyncio.wait_for(stage.writer.flush(), 20)
    assert covered(stage.producer) == [TopicPartition("dead", PLACED), TopicPartition("responses", NUMBER)]
    stage.writer.put(output("requests", 2))
    await asyncio.wait_for(stage.writer.flush(), 20)
    assert covered(stage.producer) == [TopicPartition("changelog", NUMBER)]
    assert [len(offsets) for offsets in stage.producer.offsets] == [1, 2, 1]  # what has moved, or all


def covered(producer: Producer) -> list[TopicPartition]:
    """By the last transaction, besides what it writes to."""
    begin = max(at for at, said in enumerate(producer.log) if said == "begin")
    return sorted(said[1] for said in producer.log[begin:] if said[0] == "covers")


async def test_events_wait_for_each_other_and_an_answer_for_nothing(stage: SimpleNamespace) -> None:
    stage.writer.put(output("events", 0, delta(b"0")))
    await settle()
    assert stage.producer.log == []
    stage.writer.put(output("requests", 0, Produce("responses", NUMBER, None, b"answer")))
    await settle()
    assert stage.producer.log.count("commit") == 1
    stage.writer.put(output("events", 1, delta(b"1")))
    await until(lambda: stage.producer.log.count("commit") == 2)


async def test_offsets_that_nothing_is_written_for_are_committed_when_asked_for(stage: SimpleNamespace) -> None:
    await asyncio.wait_for(stage.writer.flush(), 20)
    assert stage.producer.log == []  # nothing new
    stage.publisher._trackers["events"].acknowledge(0)
    await asyncio.wait_for(stage.writer.flush(), 20)
    assert stage.producer.offsets == [{TopicPartition("events", NUMBER): OffsetAndMetadata(1, "")}]


async def test_what_is_done_ahead_of_an_open_request_is_in_the_metadata(stage: SimpleNamespace) -> None:
    for offset in (1, 4):
        stage.writer.put(output("requests", offset, Produce("responses", NUMBER, None, b"answer")))
    await settle()
    ((offset, metadata),) = stage.producer.offsets[0].values()
    assert Progress.read(offset, metadata) == Progress(0, frozenset({1, 4}))


@pytest.mark.parametrize("stage", [(0, 1, MAX_AHEAD - 1, MAX_AHEAD, MAX_AHEAD + 1)], indirect=True)
async def test_answers_too_far_ahead_wait_for_those_behind(stage: SimpleNamespace) -> None:
    for offset in (MAX_AHEAD - 1, MAX_AHEAD, MAX_AHEAD + 1):
        stage.writer.put(output("requests", offset, Produce("responses", NUMBER, None, b"%d" % offset)))
    await settle()
    assert [output.offsets[0] for output in stage.publisher.done] == [MAX_AHEAD - 1]
    stage.writer.put(output("requests", 0, Produce("responses", NUMBER, None, b"0")))
    await settle()
    assert [output.offsets[0] for output in stage.publisher.done[1:]] == [MAX_AHEAD, 0]
    stage.writer.put(output("requests", 1, Produce("responses", NUMBER, None, b"1")))
    await settle()
    assert [output.offsets[0] for output in stage.publisher.done[3:]] == [MAX_AHEAD + 1, 1]


async def test_a_request_that_too_many_answers_wait_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have an hour. Answers that wait are not durable, so that in the end no partition was read any more, not
    even the event that it waited for."""
    monkeypatch.setattr("xgr_stream.stream.transaction.MAX_AHEAD", 8)
    stream, producer = Stream(), Producer()
    number = stream.partition("u")
    publisher = transactional_publisher(stream.processor, SimpleNamespace(client=None))
    writer = publisher._writers[number] = Writer(publisher, number, producer, stream.processor.progress(number))  # type: ignore[arg-type]
    running = asyncio.create_task(publisher.run())
    stream.processor.process(
        stream.request("u", f"waits-{each}", fields={"min_offset": 99, "timeout_ms": 3_600_000}) for each in range(2)
    )
    stream.processor.process(stream.request("u", f"r{each}") for each in range(7))
    stream.worker.work()
    await until(lambda: stream.processor.committable(REQUESTS, number) == 1)
    assert stream.processor.pending == 1
    assert publisher.unpublished(REQUESTS) == 0
    assert sample(stream, "xgr_requests_total", outcome="over_capacity", cache="none") == 1
    running.cancel()
    await writer.close()


async def test_after_a_failure_nothing_is_written_any_more(stage: SimpleNamespace) -> None:
    stage.producer.fails = KafkaConnectionError("it is away")
    copy = Produce("copies", None, None, b"answer", required=False)
    refused = Produce("nobody-has-this", None, None, b"answer", required=False)
    stage.writer.put(output("requests", 0, Produce("responses", NUMBER, None, b"answer"), copy, refused))
    await settle()
    ((error, copies),) = stage.publisher.failures
    assert (error, copies) == (stage.producer.fails, {"copies"})
    assert ("copies", None, b"answer") in stage.producer.log
    assert ("nobody-has-this", None, b"answer") not in stage.producer.log
    stage.producer.fails = None
    stage.writer.put(output("requests", 1, Produce("responses", NUMBER, None, b"answer")))
    await settle()
    assert "commit" not in stage.producer.log
    assert stage.publisher.done == []


async def test_fencing_is_named_before_its_consequences(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: object) -> None:
        raise AssertionError("not in a transaction")

    async def fenced(*_: object, **__: object) -> None:
        raise ProducerFenced

    monkeypatch.setattr(stage.producer, "send_offsets_to_transaction", refuses)
    monkeypatch.setattr(stage.producer, "send_batch", fenced)
    stage.writer.put(output("requests", 0, Produce("responses", NUMBER, None, b"answer")))
    await settle()
    assert isinstance(stage.publisher.failures[0][0], ProducerFenced)


async def test_what_is_under_way_is_aborted_when_the_partition_goes(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(stage.producer, "send_batch", never)
    stage.writer.put(output("requests", 0, Produce("responses", NUMBER, None, b"answer")))
    await settle()
    await stage.writer.close()
    assert stage.producer.log == ["begin", "abort", "stop"]


async def test_bytes_are_unpublished_until_they_are_committed_or_given_up() -> None:
    processor = SimpleNamespace(on_wake=lambda wake: None, acknowledged=lambda output: None)
    publisher = transactional_publisher(processor, SimpleNamespace(client=None))
    writer: Any = SimpleNamespace(number=NUMBER, put=lambda output: None, close=settle)
    publisher._writers[NUMBER] = writer
    outputs = [output("events", offset, delta(b"value")) for offset in range(3)]
    for each in outputs:
        publisher._send(each)
    assert publisher.unpublished_bytes == 3 * len(b"key" + b"value")
    publisher.committed(writer, outputs[:2])
    assert publisher.unpublished_bytes == len(b"key" + b"value")
    publisher.close(NUMBER)
    assert publisher.unpublished_bytes == 0
