"""Requests that wait for an event of their user's partition: what they write, they read."""

from __future__ import annotations

from tests.stream.harness import PARTITIONS, Stream, answers, message, produces
from xgr_stream.types import RecommendRequest


def test_min_offset_waits_for_the_event() -> None:
    stream = Stream()
    stream.run(stream.event("u"))
    assert stream.run(stream.request("u", fields={"min_offset": 1})) == []
    [answer] = answers(stream, stream.event("u"))
    assert (answer["event_count"], answer["event_offset"]) == (2, 1)


def test_min_offset_already_read_does_not_wait() -> None:
    stream = Stream()
    assert len(answers(stream, stream.event("u"), stream.request("u", fields={"min_offset": 0}))) == 1


def test_a_position_on_the_users_own_partition_is_waited_for() -> None:
    stream = Stream()
    fields = {"min_offset": 0, "min_offset_partition": stream.partition("u")}
    assert answers(stream, stream.request("u", fields=fields)) == []
    [answer] = answers(stream, stream.event("u"))
    assert (answer["status"], answer["event_offset"]) == ("ok", 0)


def test_a_position_on_another_partition_is_refused() -> None:
    """However far the user's own was read: its offsets say nothing of another partition's."""
    stream = Stream()
    own = stream.partition("u")
    other = (own + 1) % PARTITIONS
    fields = {"min_offset": 0, "min_offset_partition": other}
    [answer] = answers(stream, stream.event("u"), stream.request("u", fields=fields))
    expected = f"min_offset_partition must be {own}, where this user's requests and events are, not {other}: "
    assert (answer["status"], answer["error"]) == ("error", "invalid_request")
    assert answer["message"].startswith(expected)
    mine = stream.processor.submit(RecommendRequest("mine", "u", min_offset=0, min_offset_partition=other)).result(0)
    assert (mine.error, mine.message) == (answer["error"], answer["message"])
    assert stream.processor.pending == 0


def test_min_offset_counts_what_was_read_before_the_restart() -> None:
    stream = Stream(restored=False)
    partition = stream.partition("u")
    stream.processor.restored(partition, position=10)
    assert answers(stream, stream.request("u", "a", fields={"min_offset": 9}))[0]["status"] == "unknown_user"
    assert answers(stream, stream.request("u", "b", fields={"min_offset": 10})) == []


def test_min_offset_never_read_ends_with_the_deadline() -> None:
    stream = Stream()
    stream.process(stream.request("u", fields={"min_offset": 99}))
    stream.clock.advance(1.0)
    [produce] = produces(stream.processor.poll())
    assert message(produce)["error"] == "deadline_exceeded"
    assert "history" in message(produce)["message"]
