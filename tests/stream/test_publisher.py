"""The publisher: order, acknowledgement behind the broker's, retries, copies. The test plays processor and broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError

from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.stream import publisher as module
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.partition import Partition
from xgr_stream.stream.publisher import Publisher
from xgr_stream.stream.records import Produce, Record


class Processor:
    """Outputs to poll, and those that were acknowledged."""

    def __init__(self) -> None:
        self.ready: list[Output] = []
        self.done: list[Output] = []
        self.wake = lambda: None

    def on_wake(self, wake: Any) -> None:
        self.wake = wake

    def next_deadline(self) -> None:
        return None

    def poll(self) -> list[Output]:
        ready, self.ready = self.ready, []
        return ready

    def acknowledged(self, output: Output) -> None:
        self.done.append(output)


class Producer:
    """Remembers what it is given. `fate`: what happens to the next ones, an error or None; beyond that they wait."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None]] = []
        self.futures: list[asyncio.Future[None]] = []
        self.fate: deque[Exception | None] = deque()

    async def send(self, topic: str, value: bytes | None, key: bytes | None, **_: Any) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent.append((topic, value))
        self.futures.append(future)
        if self.fate:
            error = self.fate.popleft()
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        return future


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SimpleNamespace]:
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.03)
    monkeypatch.setattr(module, "COPY_TIMEOUT_S", 0.05)
    processor, producer, metrics = Processor(), Producer(), Metrics()
    progress: list[tuple[str, int]] = []
    failures: list[BaseException] = []
    publisher = Publisher(
        processor,  # type: ignore[arg-type]
        producer,
        clock=SystemClock(),
        metrics=metrics,
        on_progress=lambda topic, partition: progress.append((topic, partition)),
        on_failure=failures.append,
    )
    running = asyncio.create_task(publisher.run())

    async def publish(*outputs: Output) -> None:
        processor.ready += outputs
        processor.wake()
        await asyncio.sleep(0.005)

    yield SimpleNamespace(
        publish=publish,
        publisher=publisher,
        processor=processor,
        producer=producer,
        progress=progress,
        failures=failures,
        metrics=metrics,
    )
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


PARTITION = Partition(3)


def output(offset: int, *values: bytes, required: bool = True) -> Output:
    record = Record("events", 3, offset, None, None, 0)
    produces = tuple(Produce("out", 3, None, value, required=required) for value in values)
    return Output(PARTITION, produces, record=record)


async def test_produces_go_out_in_order_and_are_acknowledged_when_all_are_durable(stage: SimpleNamespace) -> None:
    first, second = output(0, b"a", b"b"), output(1, b"c")
    await stage.publish(first, second)
    assert [value for _, value in stage.producer.sent] == [b"a", b"b", b"c"]
    assert stage.processor.done == []
    for future, done in zip(stage.producer.futures, ([], [first], [first, second]), strict=True):
        assert not stage.publisher.idle
        future.set_result(None)
        await asyncio.sleep(0)
        assert stage.processor.done == done
    assert stage.publisher.idle
    assert stage.progress == [("events", 3), ("events", 3)]


async def test_an_output_without_produces_is_acknowledged_at_once(stage: SimpleNamespace) -> None:
    await stage.publish(output(0))
    assert len(stage.processor.done) == 1


async def test_a_write_that_times_out_is_tried_again(stage: SimpleNamespace) -> None:
    stage.producer.fate += [KafkaTimeoutError(), KafkaTimeoutError(), None]
    await stage.publish(output(0, b"a"))
    assert stage.processor.done == []
    await asyncio.sleep(0.15)
    assert [value for _, value in stage.producer.sent] == [b"a", b"a", b"a"]
    assert len(stage.processor.done) == 1
    assert stage.publisher.idle


async def test_a_write_that_is_refused_stops_the_worker_and_is_never_acknowledged(stage: SimpleNamespace) -> None:
    stage.producer.fate.append(TopicAuthorizationFailedError())
    await stage.publish(output(0, b"a"))
    assert len(stage.failures) == 1
    assert stage.processor.done == []


async def test_a_cancelled_write_is_not_acknowledged(stage: SimpleNamespace) -> None:
    await stage.publish(output(0, b"a"))
    stage.producer.futures[0].cancel()
    await asyncio.sleep(0.01)
    assert stage.processor.done == []


async def test_a_copy_holds_nobody_up(stage: SimpleNamespace) -> None:
    await stage.publish(output(0, b"to nowhere", required=False))
    assert len(stage.processor.done) == 1
    await asyncio.sleep(0.1)
    assert stage.metrics.reply_copies_failed._value.get() == 1


async def test_a_retry_ends_when_the_partition_is_revoked(stage: SimpleNamespace) -> None:
    partition = Partition(1)
    stage.producer.fate.append(KafkaTimeoutError())
    await stage.publish(Output(partition, (Produce("out", 1, None, b"a"),)))
    partition.held = False
    await asyncio.sleep(0.15)
    assert len(stage.producer.sent) == 1
    assert stage.publisher.idle


async def test_a_failed_write_holds_back_the_later_ones_of_its_partition(stage: SimpleNamespace) -> None:
    """Or a worker that died in between would leave a user's second event without the first."""
    stage.producer.fate += [KafkaTimeoutError(), None]
    await stage.publish(output(0, b"a"))
    await stage.publish(output(1, b"b"), elsewhere := Output(Partition(2), (Produce("out", 2, None, b"other"),)))
    await stage.publish(output(2, b"c"))
    assert [value for _, value in stage.producer.sent] == [b"a", b"other"]
    assert stage.processor.done == [elsewhere]
    stage.producer.fate += [None, None, None]
    await asyncio.sleep(0.15)
    assert [value for _, value in stage.producer.sent] == [b"a", b"other", b"a", b"b", b"c"]
    assert len(stage.processor.done) == 4
    await stage.publish(output(3, b"d"))
    assert stage.producer.sent[-1] == ("out", b"d")


async def test_nothing_follows_a_failed_write_before_it_is_durable(stage: SimpleNamespace) -> None:
    stage.producer.fate.append(KafkaTimeoutError())
    await stage.publish(output(0, b"a"), output(1, b"b"))
    await asyncio.sleep(0.05)
    assert [value for _, value in stage.producer.sent] == [b"a", b"b", b"a"]
    await stage.publish(output(2, b"c"))
    stage.producer.futures[1].set_exception(KafkaTimeoutError())  # it was under way when the first one failed
    stage.producer.fate += [None, None]
    stage.producer.futures[2].set_result(None)
    await asyncio.sleep(0.15)
    assert [value for _, value in stage.producer.sent] == [b"a", b"b", b"a", b"b", b"c"]
    assert len(stage.processor.done) == 3
    assert stage.publisher.idle


async def test_what_is_held_back_is_dropped_with_its_partition(stage: SimpleNamespace) -> None:
    partition = Partition(1)
    stage.producer.fate.append(KafkaTimeoutError())
    await stage.publish(Output(partition, (Produce("out", 1, None, b"a"),)))
    await stage.publish(Output(partition, (Produce("out", 1, None, b"b"), Produce("out", 1, None, b"c"))))
    partition.held = False
    await asyncio.sleep(0.15)
    assert [value for _, value in stage.producer.sent] == [b"a"]
    assert stage.publisher.idle
