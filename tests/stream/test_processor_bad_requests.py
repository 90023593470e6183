"""Requests that are at fault: whoever can be told is told why, and what nobody sent is a dead letter."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from tests.stream.harness import (
    DEAD,
    EVENTS,
    PARTITIONS,
    REQUESTS,
    RESPONSES,
    Stream,
    answers,
    message,
    sample,
)
from xgr_stream.config import MIB, TopicNames
from xgr_stream.stream.records import Produce


@pytest.mark.parametrize("topic", [*astuple(TopicNames()), "..", "a b", "x" * 250, "__consumer_offsets"])
def test_reply_to_cannot_name_our_topics_or_an_illegal_one(topic: str) -> None:
    [answer] = answers(stream := Stream(), stream.request("u", fields={"reply_to": topic}))
    assert (answer["status"], answer["error"]) == ("error", "invalid_request")
    assert "reply_to" in answer["message"]


def test_reply_to_cannot_name_a_topic_that_is_in_use_by_now() -> None:
    """The record of a response for the user `item-7` would delete that item from a catalog."""
    stream = Stream()
    allowed = stream.run(stream.request("item-7", fields={"reply_to": "catalog-b"}))
    stream.used.add("catalog-b")
    refused = stream.run(stream.request("item-7", "r2", fields={"reply_to": "catalog-b"}))
    assert [produce.topic for produce in (*allowed, *refused)] == [RESPONSES, "catalog-b", RESPONSES]


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"v": 9}, "unsupported_version", "v must be 1, not 9"),
        ({"v": "1"}, "malformed", "v must be"),
        ({"k": 0}, "invalid_request", "k must be an integer from 1 to 1024, not 0"),
        ({"k": "ten"}, "invalid_request", "k must be"),
        ({"k": True}, "invalid_request", "k must be"),
        ({"k": 20, "beam_width": 10}, "invalid_request", "beam_width must be"),
        ({"beam_width": 1025}, "invalid_request", "beam_width must be"),
        ({"exclude": "item-1"}, "invalid_request", "exclude must be a list"),
        ({"exclude": [1]}, "invalid_request", "exclude must be"),
        ({"allow": ["t"] * 65}, "invalid_request", "allow must hold at most 64"),
        ({"timeout_ms": -1}, "invalid_request", "timeout_ms must be"),
        ({"timeout_ms": 0}, "deadline_exceeded", "had 0 ms"),
        ({"min_offset": 1.5}, "invalid_request", "min_offset must be"),
        ({"tail": 5}, "invalid_request", "tail must be None or a sequence of token ids of at least 0, not 5"),
        ({"tail": [-1]}, "invalid_request", "tail must be"),
        ({"tail": [0] * 65}, "invalid_request", "tail must hold at most 64 tokens, not 65"),
        ({"user_id": "w"}, "invalid_request", "user_id must equal the record's key"),
        ({"user_id": 7}, "invalid_request", "user_id must equal the record's key"),
    ],
)
def test_a_bad_request_with_an_id_gets_an_error_response(fields: dict, error: str, text: str) -> None:
    stream = Stream()
    [answer] = answers(stream, stream.request("u", "r-1", fields=fields))
    assert (answer["request_id"], answer["status"], answer["error"]) == ("r-1", "error", error)
    assert text in answer["message"]
    assert stream.processor.committable(REQUESTS, stream.partition("u")) == 1
    assert sample(stream, "xgr_requests_total", outcome=error, cache="none") == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"garbage", "malformed"),
        (None, "malformed"),
        ({"v": 1}, "invalid_request"),
        ({"v": 1, "request_id": ""}, "invalid_request"),
        ({"v": 1, "request_id": 5}, "invalid_request"),
        ({"v": 1, "request_id": "x" * 257}, "invalid_request"),
        (b"\x81\xa1v\x01" + b"x" * (10 << 20), "too_large"),
    ],
)
def test_a_request_without_an_id_to_answer_to_becomes_a_dead_letter(value: object, reason: str) -> None:
    stream = Stream()
    [dead] = stream.run(stream.record(REQUESTS, "u", value))  # type: ignore[arg-type]
    assert dead.topic == DEAD
    letter = message(dead)
    assert (letter["reason"], letter["topic"]) == (reason, REQUESTS)
    assert len(letter["value"] or b"") <= 64 * 1024
    assert stream.processor.committable(REQUESTS, stream.partition("u")) == 1


def test_a_request_placed_by_another_partitioner_is_told_so_where_it_was_sent() -> None:
    stream = Stream()
    wrong = (stream.partition("u") + 1) % PARTITIONS
    [produce] = stream.run(stream.request("u", partition=wrong))
    assert produce.partition == wrong
    assert message(produce)["error"] == "misplaced"
    assert sample(stream, "xgr_misplaced_records_total", topic=REQUESTS) == 1


def size(produce: Produce) -> int:
    """Bytes that the record takes, at most, but for the batch around it."""
    headers = sum(len(name.encode()) + len(value or b"") + 10 for name, value in produce.headers)
    return len(produce.key or b"") + len(produce.value or b"") + headers + 30


@pytest.mark.parametrize(
    "value", [b"garbage", {"v": 1, "request_id": "r"}, {"v": 1, "request_id": "r", "user_id": "u"}]
)
@pytest.mark.parametrize("topic", [EVENTS, REQUESTS])
@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (b"k" * MIB, ()),
        (b"u", (("", b""),) * 524_240),
        (b"u", (("\N{GRINNING FACE}" * 100, b""),) * 160),
        (b"u", (("traceparent", b"0" * MIB), ("tracestate", None))),
    ],
    ids=["key", "empty headers", "names", "trace"],
)
def test_nothing_that_a_record_brings_along_makes_an_answer_too_large(
    topic: str, value: object, key: bytes, headers: tuple
) -> None:
    """The broker would refuse it, and that stops a worker, and the next one that reads the record."""
    stream = Stream()
    record = stream.record(topic, "u", value, key=key)._replace(headers=headers)  # type: ignore[arg-type]
    [produce] = stream.run(record)
    assert size(produce) < MIB
