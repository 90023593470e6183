"""How many requests the processor takes in at once, how much memory they may take, and that it is free again."""

from __future__ import annotations

import gc

from tests.stream.harness import Stream, answers, message, produces
from xgr_stream.types import RecommendRequest


def test_requests_over_capacity_are_refused_at_once() -> None:
    stream = Stream(max_pending_requests=2)
    outputs = stream.process(*(stream.request("u", f"r{i}") for i in range(3)))
    [produce] = produces(outputs)
    assert (message(produce)["request_id"], message(produce)["error"]) == ("r2", "over_capacity")
    stream.acknowledge(stream.answer())
    assert stream.process(stream.request("u", "r2")) == []
    assert stream.processor.pending == 1


def test_requests_are_refused_by_what_they_take_too() -> None:
    """Each of some 100 kB of a message and 64 bytes more for each of 1,000 strings in it."""
    stream = Stream(max_waiting_bytes=400_000)
    large = {"exclude": [f"{i:0100}" for i in range(1_000)]}
    outputs = stream.process(*(stream.request("u", f"r{i}", fields=large) for i in range(4)), stream.request("u", "s"))
    assert [(message(produce)["request_id"], message(produce)["error"]) for produce in produces(outputs)] == [
        ("r2", "over_capacity"),
        ("r3", "over_capacity"),
    ]
    assert stream.processor.pending == 3
    stream.acknowledge(stream.answer())
    assert stream.process(stream.request("u", "r2", fields=large)) == []


def test_one_request_may_take_more_than_all_may() -> None:
    stream = Stream(max_waiting_bytes=1)
    assert [answer["status"] for answer in answers(stream, stream.request("u"))] == ["unknown_user"]


def test_what_is_delivered_again_while_it_waits_is_bounded_too() -> None:
    """The answer goes to each delivery that was kept; the others hear that they were not."""
    stream = Stream(max_waiting_bytes=10_000)
    records = [stream.request("u")._replace(headers=(("h", b"x" * 1_000),)) for _ in range(20)]
    refused = [message(produce)["error"] for produce in produces(stream.process(*records))]
    answered = [message(produce) for produce in produces(stream.answer())]
    assert set(refused) == {"over_capacity"}
    assert len(answered) + len(refused) == 20
    assert 5 <= len(answered) < 10
    assert {answer["status"] for answer in answered} == {"unknown_user"}


def kept_requests() -> int:
    gc.collect()
    return sum(type(each) is RecommendRequest for each in gc.get_objects())


def test_what_is_answered_is_not_kept_until_the_history_moves_on() -> None:
    """They were, each with all that it excludes, for as long as no event came."""
    stream, before = Stream(), kept_requests()
    for number in range(10):
        stream.process(stream.request("u", f"r{number}", fields={"min_offset": 99}))
    assert kept_requests() - before == 10
    stream.clock.advance(1.0)
    assert len(stream.processor.poll()) == 10
    assert kept_requests() == before


def test_nor_until_its_deadline() -> None:
    stream, before = Stream(), kept_requests()
    stream.process(stream.request("u", "first", fields={"min_offset": 99, "timeout_ms": 60_000}))
    stream.process(*(stream.request("u", f"r{number}", fields={"timeout_ms": 90_000}) for number in range(10)))
    stream.answer()
    assert stream.processor.pending == kept_requests() - before == 1
    stream.clock.advance(60.0)
    assert len(stream.processor.poll()) == 1
    assert stream.processor.next_deadline() is None
