"""Requests through the processor: each is answered, once, and what it saw is what came before it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.stream.harness import (
    DEAD,
    EVENTS,
    REQUESTS,
    RESPONSES,
    HandWorker,
    Stream,
    answers,
    message,
    produces,
    sample,
)
from xgr_stream.errors import OverCapacity
from xgr_stream.history import HistoryView
from xgr_stream.stream.records import Record
from xgr_stream.types import Recommendation, RecommendRequest, RecommendResponse, Status


def test_a_request_is_answered_on_its_own_partition_and_committed_after_it() -> None:
    stream = Stream()
    record = stream.request("u")
    stream.run(stream.event("u"), stream.event("u"))
    assert stream.process(record) == []
    outputs = stream.answer()
    [produce] = produces(outputs)
    assert (produce.topic, produce.partition, produce.key) == (RESPONSES, record.partition, b"u")
    response = message(produce)
    assert (response["v"], response["request_id"], response["user_id"], response["status"]) == (1, "r", "u", "ok")
    assert (response["event_count"], response["event_offset"], response["cache"]) == (2, 1, "cold")
    assert len(response["items"]) == 10
    assert set(response["stages_ms"]) == {"wait", "append", "decode", "total"}
    assert stream.processor.committable(REQUESTS, record.partition) is None
    stream.acknowledge(outputs)
    assert stream.processor.committable(REQUESTS, record.partition) == 1
    assert sample(stream, "xgr_requests_total", outcome="ok", cache="cold") == 1
    assert sample(stream, "xgr_stage_seconds_count", stage="publish") == 1
    assert sample(stream, "xgr_stage_seconds_count", stage="total") == 1


class RefusingWorker(HandWorker):
    """Has no time for the first request."""

    def submit(
        self, request: RecommendRequest, view: HistoryView | None, deadline: float | None, *, partition: int = 0
    ) -> Future[RecommendResponse]:
        future = super().submit(request, view, deadline, partition=partition)
        if request.request_id == "a":
            self.submitted.pop()
            failure = OverCapacity("no time")
            future.set_result(RecommendResponse.failure(request.request_id, request.user_id, failure))
        return future


def test_a_refused_request_hears_of_it_before_what_came_with_it_is_taken_in() -> None:
    stream = Stream()
    stream.processor._requests._worker = worker = RefusingWorker()
    taken = iter((stream.request("u", "a"), stream.request("u", "b")))
    waiting: list[int] = []

    def records() -> Iterator[Record]:
        for record in taken:
            waiting.append(stream.processor.pending)
            yield record

    stream.processor.process(records())
    assert waiting == [0, 0]
    assert stream.processor.pending == len(worker.submitted) == 1
    [produce] = produces(stream.processor.poll())
    assert (message(produce)["request_id"], message(produce)["error"]) == ("a", "over_capacity")
    own = stream.processor.submit(RecommendRequest("a", "u"))
    assert own.result(0).error == "over_capacity"
    assert set(own.result(0).stages_ms) == {"wait", "total"}


def test_answers_may_come_out_of_order_but_offsets_do_not() -> None:
    stream = Stream()
    stream.process(stream.request("u", "a"), stream.request("u", "b"))
    first, second = stream.worker.submitted
    stream.worker.submitted = [second]
    outputs = stream.answer()
    stream.acknowledge(outputs)
    partition = stream.partition("u")
    assert stream.processor.committable(REQUESTS, partition) is None
    stream.worker.submitted = [first]
    stream.acknowledge(stream.answer())
    assert stream.processor.committable(REQUESTS, partition) == 2


def test_a_request_sees_every_event_before_it_in_the_batch_and_none_after() -> None:
    stream = Stream()
    [answer] = answers(stream, stream.event("u"), stream.event("u"), stream.request("u"), stream.event("u"))
    assert answer["event_count"] == 2


def test_candidates_are_scored_and_those_that_cannot_be_are_named() -> None:
    stream = Stream()
    candidates = ["item-3", "unheard-of", "item-1"]
    fields = {"candidates": candidates}
    [answer] = answers(stream, stream.event("u"), stream.request("u", fields=fields))
    assert (answer["status"], answer["event_count"]) == ("ok", 1)
    assert {item["item_id"] for item in answer["items"]} == {"item-1", "item-3"}
    assert answer["unscored"] == {"unheard-of": "unknown"}
    assert "shortfall" not in answer
    [answer] = answers(stream, stream.request("nobody", fields=fields))
    assert (answer["status"], answer["items"]) == ("unknown_user", [])
    assert answer["unscored"] == {"unheard-of": "unknown", "item-1": "unknown_user", "item-3": "unknown_user"}
    [answer] = answers(stream, stream.request("u", "both", fields=fields | {"seen": True}))
    assert (answer["error"], "candidates must go without" in answer["message"]) == ("invalid_request", True)


def test_an_answer_that_no_broker_takes_becomes_an_error() -> None:
    """It would stop the worker, and the next one that reads the request."""
    stream = Stream()
    long = [f"{number:04}" + "\N{GRINNING FACE}" * 252 for number in range(1_024)]
    [answer] = answers(stream, stream.request("u", fields={"candidates": long[:900]}))
    assert (answer["status"], len(answer["unscored"])) == ("unknown_user", 900)
    written = stream.run(stream.request("u", "r-2", fields={"candidates": long}))
    [answer] = [message(produce) for produce in written]
    assert (answer["status"], answer["error"]) == ("error", "too_large")
    assert answer["message"].startswith("the request must ask for less: its answer takes 10")
    assert sample(stream, "xgr_requests_total", outcome="too_large", cache="none") == 1


def test_an_unknown_user_is_answered() -> None:
    [answer] = answers(stream := Stream(), stream.request("nobody"))
    assert (answer["status"], answer["event_count"], answer["cache"]) == ("unknown_user", 0, "none")


def test_a_copy_goes_to_reply_to_and_nobody_waits_for_it() -> None:
    stream = Stream()
    written = stream.run(stream.request("u", fields={"reply_to": "my-answers"}))
    assert [(p.topic, p.required) for p in written] == [(RESPONSES, True), ("my-answers", False)]
    assert written[0].value == written[1].value
    assert written[1].partition is None


def test_an_answer_says_that_the_requests_own_tail_was_computed() -> None:
    stream = Stream()
    asked = stream.request("u", "r-1"), stream.request("u", "r-2", fields={"tail": [5, 0]})
    plain, own = answers(stream, stream.event("u"), *asked)
    assert "tail_computed" not in plain
    assert own["tail_computed"] is True


def test_an_expired_request_is_answered_and_never_computed() -> None:
    stream = Stream()
    [answer] = answers(stream, stream.request("u", age_ms=1_000))
    assert answer["error"] == "deadline_exceeded"
    assert stream.worker.submitted == []


def test_a_request_is_answered_at_its_deadline_even_if_the_device_hangs() -> None:
    stream = Stream()
    stream.process(stream.request("u", fields={"timeout_ms": 300}, age_ms=100))
    assert stream.processor.next_deadline() == pytest.approx(stream.clock.now() + 0.2)
    stream.clock.advance(0.19)
    assert stream.processor.poll() == []
    stream.clock.advance(0.02)
    [produce] = produces(stream.processor.poll())
    assert message(produce)["error"] == "deadline_exceeded"
    assert stream.worker.work() == 0
    assert stream.processor.poll() == []
    assert stream.processor.next_deadline() is None


def test_a_record_from_the_future_or_without_time_has_its_whole_timeout() -> None:
    stream = Stream()
    for i, record in enumerate((stream.request("u", "a", age_ms=-5_000), stream.request("u", "b"))):
        stream.process(record._replace(timestamp_ms=-1) if i else record)
    assert stream.processor.next_deadline() == pytest.approx(stream.clock.now() + 1.0)


def test_a_request_that_is_asked_again_has_its_own_deadline() -> None:
    stream = Stream()
    stream.process(stream.request("u", "other", fields={"timeout_ms": 100}))
    stream.process(stream.request("u", fields={"timeout_ms": 1_000}))
    stream.worker.submitted.pop()[2].set_exception(RuntimeError("boom"))
    assert len(stream.processor.poll()) == 1
    stream.process(stream.request("u", fields={"timeout_ms": 3_000}))
    stream.clock.advance(2.0)
    [other] = produces(stream.processor.poll())
    assert message(other)["request_id"] == "other"
    assert stream.processor.pending == 1
    stream.clock.advance(1.0)
    assert len(stream.processor.poll()) == 1


def test_a_request_waits_for_its_partitions_history() -> None:
    stream = Stream(restored=False)
    assert stream.process(stream.event("u"), stream.request("u")) == []
    assert stream.worker.submitted == []
    stream.processor.restored(stream.partition("u"))
    assert [message(p)["event_count"] for p in stream.run() if p.topic == RESPONSES] == [1]


def test_a_failing_device_worker_is_an_engine_error() -> None:
    stream = Stream()
    stream.process(stream.request("u"))
    stream.worker.submitted[0][2].set_exception(RuntimeError("boom"))
    [produce] = produces(stream.processor.poll())
    assert message(produce)["error"] == "engine"


@pytest.mark.parametrize(("codec", "score"), [("json", float("nan")), ("msgpack", object())])
def test_a_response_that_cannot_be_written_is_an_engine_error(codec: str, score: float) -> None:
    stream = Stream(codec=codec)
    stream.process(stream.request("u"))
    [(_, _, computing)] = stream.worker.submitted
    computing.set_result(RecommendResponse("r", "u", Status.OK, (Recommendation("item-1", score, (1,)),)))
    [produce] = produces(stream.processor.poll())
    assert message(produce)["error"] == "engine"
    assert sample(stream, "xgr_requests_total", outcome="engine", cache="none") == 1


def test_revoking_drops_pending_requests_without_an_answer() -> None:
    stream = Stream()
    own = RecommendRequest("own", "u")
    future = stream.processor.submit(own)
    stream.process(stream.request("u"))
    stream.processor.revoke([stream.partition("u")])
    assert stream.processor.pending == 0
    assert stream.worker.work() == 0
    assert stream.processor.poll() == []
    assert stream.processor.committable(REQUESTS, stream.partition("u")) is None
    assert future.result(0).error == "not_owned"


def test_shutdown_answers_what_was_taken_and_refuses_the_rest() -> None:
    stream = Stream()
    stream.process(stream.request("u", "done"), stream.request("u", "late"))
    done, late = stream.worker.submitted
    stream.processor.close()
    stream.worker.submitted = [done]
    stream.worker.work()
    stream.processor.abandon()
    by_id = {message(p)["request_id"]: message(p).get("error") for p in produces(stream.processor.poll())}
    assert by_id == {"done": None, "late": "shutting_down"}
    assert stream.processor.pending == 0
    assert late[2].cancelled()
    assert stream.processor.submit(RecommendRequest("x", "u")).result(0).error == "shutting_down"


def test_a_request_of_this_process_goes_the_same_way() -> None:
    stream = Stream()
    stream.run(stream.event("u"))
    future: Future[RecommendResponse] = stream.processor.submit(RecommendRequest("own", "u", k=3))
    twice = stream.processor.submit(RecommendRequest("own", "u", k=3))
    assert twice.result(0).error == "invalid_request"
    assert stream.answer() == []
    response = future.result(0)
    assert (response.status, response.event_count, len(response.items)) == (Status.OK, 1, 3)
    assert sample(stream, "xgr_requests_total", outcome="ok", cache="cold") == 1
    assert sample(stream, "xgr_stage_seconds_count", stage="total") == 1
    assert stream.processor.owns("u")


def test_a_user_of_another_worker_is_not_owned() -> None:
    stream = Stream()
    stream.processor.revoke([stream.partition("u")])
    assert not stream.processor.owns("u")
    assert stream.processor.submit(RecommendRequest("own", "u")).result(0).error == "not_owned"


def test_a_wake_comes_once_between_two_polls() -> None:
    stream = Stream()
    stream.processor.poll()
    stream.wakes = 0
    stream.processor.process([stream.event("u"), stream.event("u"), stream.request("u"), stream.request("w")])
    assert stream.wakes == 1
    stream.processor.poll()
    stream.worker.work()
    assert stream.wakes == 2
    assert len(stream.processor.poll()) == 2


def test_json_in_and_out() -> None:
    stream = Stream(codec="json")
    record = stream.record(REQUESTS, "u", b'{"v": 1, "request_id": "r", "user_id": "u"}')
    [produce] = stream.run(record)
    assert produce.value is not None
    assert produce.value.startswith(b'{"v":1,"request_id":"r"')


def test_every_request_gets_exactly_one_answer_whatever_happens() -> None:
    stream = Stream(max_pending_requests=8)
    records = [
        stream.request(
            f"user-{i % 5}", f"r{i}", age_ms=1_500 if i % 7 == 0 else 0, fields={"k": i % 4, "min_offset": i % 3}
        )
        for i in range(40)
    ]
    written = stream.run(*records)
    stream.clock.advance(2.0)
    written += produces(stream.processor.poll())
    ids = [message(p)["request_id"] for p in written if p.topic == RESPONSES]
    assert sorted(ids) == sorted(f"r{i}" for i in range(40))
    assert stream.processor.pending == 0
    assert stream.processor.committable(EVENTS, 0) is None


def test_headers_go_from_a_request_to_all_that_answers_it() -> None:
    stream = Stream()
    headers = (("traceparent", b"00-1-2-01"), ("tenant", b"shop"))
    request = stream.request("u", fields={"reply_to": "mine"})._replace(headers=headers)
    assert [produce.headers for produce in stream.run(request)] == [headers, headers]
    again = request._replace(offset=request.offset + 1, headers=(("traceparent", b"00-3-4-01"),))
    assert [produce.headers for produce in stream.run(again)] == [again.headers, again.headers]
    refused = stream.record(REQUESTS, "u", b"\xc1")._replace(offset=request.offset + 2, headers=headers)
    assert [(produce.topic, produce.headers) for produce in stream.run(refused)] == [(DEAD, headers)]


def test_headers_beyond_the_bound_leave_what_traces_the_request() -> None:
    stream = Stream()
    trace, large = ("traceparent", b"00-1-2-01"), ("large", bytes(20_000))
    [produce] = stream.run(stream.request("u")._replace(headers=(large, trace)))
    assert produce.headers == (trace,)
    [produce] = stream.run(stream.request("u", "r2")._replace(headers=(("traceparent", bytes(20_000)),)))
    assert produce.headers == ()
