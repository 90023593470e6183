"""The publisher of lanes: order, acknowledgement behind the broker's, retries, copies. The test plays processor and
broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaTimeoutError,
    OutOfOrderSequenceNumber,
    TopicAuthorizationFailedError,
)

from tests.stream.batch import Producer
from tests.stream.waiting import settle, until
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.stream import lane_publisher as module
from xgr_stream.stream.lane_publisher import LanePublisher
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.partition import Partition
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


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SimpleNamespace]:
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.2)
    monkeypatch.setattr(module, "COPY_TIMEOUT_S", 0.05)
    processor, producer, metrics = Processor(), Producer(), Metrics()
    progress: list[tuple[str, int]] = []
    failures: list[BaseException] = []
    replacements = [Producer()]

    async def replacement() -> Producer:
        return replacements[0]

    publisher = LanePublisher(
        processor=processor,
        producer=producer,
        new_producer=replacement,
        clock=SystemClock(),
        metrics=metrics,
        on_progress=lambda topic, partition: progress.append((topic, partition)),
        on_failure=failures.append,
    )
    running = asyncio.create_task(publisher.run())

    async def publish(*outputs: Output) -> None:
        processor.ready += outputs
        processor.wake()
        await settle()

    yield SimpleNamespace(
        publish=publish,
        publisher=publisher,
        processor=processor,
        producer=producer,
        replacement=replacements[0],
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


async def test_a_producer_that_is_out_of_step_with_the_broker_is_replaced(stage: SimpleNamespace) -> None:
    stage.producer.fate.append(OutOfOrderSequenceNumber())
    stage.replacement.fate.append(None)
    await stage.publish(output(0, b"a"))
    await until(lambda: stage.publisher.idle)
    assert stage.producer.batches == [[b"a"]] == stage.replacement.batches
    assert stage.progress
    assert not stage.failures


async def test_so_is_one_that_a_record_of_the_workers_own_finds_out_of_step(stage: SimpleNamespace) -> None:
    """Recoveries had kept the first producer: the fence of the next one ended the worker."""
    stage.producer.fate.append(OutOfOrderSequenceNumber())
    stage.replacement.fate.append(None)
    await stage.publisher.write("log", b"fence", b"key", partition=3)
    assert stage.producer.sent == [("log", [b"fence"])] == stage.replacement.sent
    stage.replacement.fate.append(TopicAuthorizationFailedError())
    with pytest.raises(TopicAuthorizationFailedError):
        await stage.publisher.write("log", b"fence", b"key", partition=3)


async def test_and_by_a_copy_which_is_not_tried_again(stage: SimpleNamespace) -> None:
    stage.producer.fate.append(OutOfOrderSequenceNumber())
    await stage.publish(output(0, b"a", required=False))
    await settle()
    stage.replacement.fate.append(None)
    await stage.publish(output(1, b"b", required=False))
    assert stage.producer.batches == [[b"a"]]
    assert stage.replacement.batches == [[b"b"]]
    assert stage.metrics.registry.get_sample_value("xgr_reply_copies_failed_total") == 1


async def test_a_connection_that_does_not_know_its_broker_yet_is_tried_again(stage: SimpleNamespace) -> None:
    stage.producer.fate += [IncompatibleBrokerVersion("the API version is unknown"), None]
    await stage.publish(output(0, b"a"))
    await until(lambda: stage.publisher.idle)
    assert stage.producer.batches == [[b"a"], [b"a"]]
    assert stage.progress
    assert not stage.failures


async def test_produces_go_out_in_order_and_are_acknowledged_when_all_are_durable(stage: SimpleNamespace) -> None:
    stage.producer.room = 1
    first, second = output(0, b"a", b"b"), output(1, b"c")
    await stage.publish(first, second)
    for sent, done in (([b"a"], []), ([b"b"], [first]), ([b"c"], [first, second])):
        assert stage.producer.batches[-1] == sent  # the next one waits for it
        assert not stage.publisher.idle
        stage.producer.futures[-1].set_result(None)
        await settle()
        assert stage.processor.done == done
    assert stage.publisher.idle
    assert stage.progress == [("events", 3), ("events", 3)]


async def test_what_comes_while_a_batch_is_under_way_goes_out_together(stage: SimpleNamespace) -> None:
    await stage.publish(output(0, b"a"))
    await stage.publish(output(1, b"b"))
    await stage.publish(output(2, b"c"))
    assert stage.publisher.unpublished("events") == 3
    assert stage.publisher.unpublished_bytes == 3 * output(0, b"a").num_bytes > 0
    stage.producer.fate.append(None)
    stage.producer.futures[0].set_result(None)
    await settle()
    assert stage.producer.batches == [[b"a"], [b"b", b"c"]]
    assert len(stage.processor.done) == 3
    assert stage.publisher.unpublished("events") == stage.publisher.unpublished_bytes == 0


async def test_a_record_without_a_partition_is_bound_by_no_order(stage: SimpleNamespace) -> None:
    stage.producer.fate += [KafkaTimeoutError(), None, None]
    letter = Output(PARTITION, (Produce("dead", None, None, b"x"),), record=Record("events", 3, 0, None, None, 0))
    await stage.publish(letter, other := output(1, b"a"))
    assert stage.processor.done == [other]
    await until(lambda: stage.processor.done == [other, letter])


async def test_an_output_without_produces_is_acknowledged_at_once(stage: SimpleNamespace) -> None:
    await stage.publish(output(0))
    assert len(stage.processor.done) == 1


async def test_a_write_that_times_out_is_tried_again(stage: SimpleNamespace) -> None:
    stage.producer.fate += [KafkaTimeoutError(), KafkaTimeoutError(), None]
    await stage.publish(output(0, b"a"))
    assert stage.processor.done == []
    await until(lambda: stage.publisher.idle)
    assert stage.producer.batches == [[b"a"], [b"a"], [b"a"]]
    assert len(stage.processor.done) == 1


async def test_a_write_that_is_refused_stops_the_worker_and_is_never_acknowledged(stage: SimpleNamespace) -> None:
    stage.producer.fate.append(TopicAuthorizationFailedError())
    await stage.publish(output(0, b"a"))
    assert len(stage.failures) == 1
    assert stage.processor.done == []


async def test_a_cancelled_write_is_not_acknowledged(stage: SimpleNamespace) -> None:
    await stage.publish(output(0, b"a"))
    stage.producer.futures[0].cancel()
    await settle()
    assert stage.processor.done == []


async def test_a_copy_holds_nobody_up(stage: SimpleNamespace) -> None:
    await stage.publish(output(0, b"to nowhere", required=False))
    assert len(stage.processor.done) == 1
    await until(lambda: stage.metrics.reply_copies_failed._value.get() == 1)


async def test_a_retry_ends_when_the_partition_is_revoked(stage: SimpleNamespace) -> None:
    partition = Partition(1)
    stage.producer.fate.append(KafkaTimeoutError())
    await stage.publish(Output(partition, (Produce("out", 1, None, b"a"),)))
    assert not stage.publisher.idle
    partition.held = False
    await until(lambda: stage.publisher.idle)
    assert len(stage.producer.sent) == 1


async def test_a_failed_write_holds_back_the_later_ones_of_its_partition(stage: SimpleNamespace) -> None:
    """Or a worker that died in between would leave a user's second event without the first."""
    stage.producer.fate += [KafkaTimeoutError(), None]
    await stage.publish(output(0, b"a"))
    await stage.publish(output(1, b"b"), elsewhere := Output(Partition(2), (Produce("out", 2, None, b"other"),)))
    await stage.publish(output(2, b"c"))
    assert stage.producer.batches == [[b"a"], [b"other"]]
    assert stage.processor.done == [elsewhere]
    stage.producer.fate += [None, None]
    await until(lambda: len(stage.processor.done) == 4)
    assert stage.producer.batches == [[b"a"], [b"other"], [b"a", b"b", b"c"]]
    await stage.publish(output(3, b"d"))
    assert stage.producer.sent[-1] == ("out", [b"d"])


async def test_what_is_held_back_is_dropped_with_its_partition(stage: SimpleNamespace) -> None:
    partition = Partition(1)
    stage.producer.fate.append(KafkaTimeoutError())
    await stage.publish(Output(partition, (Produce("out", 1, None, b"a"),)))
    await stage.publish(Output(partition, (Produce("out", 1, None, b"b"), Produce("out", 1, None, b"c"))))
    assert not stage.publisher.idle
    partition.held = False
    await until(lambda: stage.publisher.idle)
    assert stage.producer.batches == [[b"a"]]
