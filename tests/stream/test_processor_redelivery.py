"""Requests that come again: answered from memory, and computed once."""

from __future__ import annotations

from tests.stream.harness import (
    REQUESTS,
    RESPONSES,
    Stream,
    answers,
    produces,
)
from xgr_stream.stream import codec
from xgr_stream.stream.records import Record


def test_a_redelivered_request_is_answered_from_memory() -> None:
    stream = Stream()
    [first] = [p.value for p in stream.run(stream.request("u"))]
    [again] = stream.process(stream.request("u", fields={"reply_to": "elsewhere"}))
    assert [p.value for p in again.produces] == [first, first]
    stream.acknowledge([again])
    assert stream.processor.committable(REQUESTS, stream.partition("u")) == 2
    stream.clock.advance(61)
    assert stream.process(stream.request("u")) == []
    assert stream.processor.pending == 1


def test_a_request_redelivered_while_it_is_computed_is_computed_once() -> None:
    stream = Stream()
    stream.process(stream.request("u"), stream.request("u"))
    assert len(stream.worker.submitted) == 1
    assert len(stream.acknowledge(stream.answer())) == 0
    assert stream.processor.committable(REQUESTS, stream.partition("u")) == 2


def test_the_same_id_of_another_user_is_another_request() -> None:
    stream = Stream()
    assert [a["user_id"] for a in answers(stream, stream.request("u"), stream.request("w"))] == ["u", "w"]


def test_errors_are_not_remembered() -> None:
    stream = Stream()
    stream.run(stream.request("u", age_ms=2_000))
    assert [a["status"] for a in answers(stream, stream.request("u"))] == ["unknown_user"]


def test_a_new_owner_reads_back_recent_answers() -> None:
    stream = Stream()
    [written] = stream.run(stream.request("u"))
    partition = stream.partition("u")
    successor = Stream()
    log = [
        Record(RESPONSES, partition, 0, b"u", b"not a response", stream.clock.wall_ms()),
        Record(RESPONSES, partition, 1, b"u", None, stream.clock.wall_ms()),
        Record(RESPONSES, partition, 2, b"u", written.value, stream.clock.wall_ms()),
    ]
    successor.processor.restore_answers(partition, log)
    assert [p.value for p in produces(successor.process(successor.request("u")))] == [written.value]


def test_a_new_owner_reads_back_answers_that_are_larger_than_requests_may_be() -> None:
    stream, successor = Stream(max_message_bytes=2_000), Stream(max_message_bytes=2_000)
    [written] = stream.run(stream.request("u"))
    partition = stream.partition("u")
    message = codec.decode(written.value or b"", 1 << 20)
    large = codec.encode({**message, "model_version": "m" * 3_000}, "msgpack")
    log = [Record(RESPONSES, partition, 0, b"u", large, stream.clock.wall_ms())]
    successor.processor.restore_answers(partition, log)
    assert [p.value for p in produces(successor.process(successor.request("u")))] == [large]


def test_one_that_comes_on_another_partition_is_another_request() -> None:
    """Its offset counts there alone: that of a request that nobody had answered was committed in its place, and its own
    never."""
    stream = Stream(partitioner="any")
    stream.process(stream.request("u", partition=0), stream.request("v", partition=0))
    stream.process(stream.request("w", partition=1), stream.request("u", partition=1))
    of_v = stream.worker.submitted.pop(1)
    stream.acknowledge(stream.answer())
    assert stream.processor.committable(REQUESTS, 0) == 1
    assert stream.processor.committable(REQUESTS, 1) == 2
    stream.worker.submitted.append(of_v)
    stream.acknowledge(stream.answer())
    assert stream.processor.committable(REQUESTS, 0) == 2
