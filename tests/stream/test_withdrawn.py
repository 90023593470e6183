"""Requests of the process's own whose callers have gone."""

from __future__ import annotations

import pytest

from tests.stream.harness import Stream, produces
from xgr_stream.types import RecommendRequest


@pytest.mark.parametrize("waits", [True, False])
def test_a_withdrawn_request_is_taken_off_the_books_and_from_the_device(waits: bool) -> None:
    """`waits`: for its history, so that the device has not heard of it."""
    stream = Stream(restored=not waits)
    future = stream.processor.submit(RecommendRequest("r", "u", timeout_ms=60_000))
    assert stream.processor.poll() == []
    assert stream.processor.pending == 1
    wakes = stream.wakes
    assert future.cancel()
    assert stream.wakes > wakes
    assert stream.processor.poll() == []
    assert stream.processor.pending == 0
    assert stream.processor.next_deadline() is None
    assert stream.worker.work() == 0
    stream.processor.restored(stream.partition("u"))
    assert stream.worker.submitted == []
    assert stream.processor.submit(RecommendRequest("r", "u")).cancel()  # its id is free again


def test_one_that_has_come_over_the_topic_too_is_answered_there() -> None:
    stream = Stream()
    future = stream.processor.submit(RecommendRequest("r", "u"))
    stream.process(stream.request("u", "r"))
    assert future.cancel()
    assert stream.processor.poll() == []
    assert stream.processor.pending == 1
    (answer,) = produces(stream.answer())
    assert b"unknown_user" in (answer.value or b"")
    assert stream.processor.pending == 0


def test_one_that_is_answered_already_stays_so() -> None:
    stream = Stream()
    future = stream.processor.submit(RecommendRequest("r", "u"))
    stream.answer()
    assert not future.cancel()
    assert future.result(0).request_id == "r"
    assert stream.processor.pending == 0
