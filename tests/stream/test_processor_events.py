"""Events through the processor: history, changelog, acknowledgement, refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.stream.harness import CHANGELOG, DEAD, EVENTS, PARTITIONS, REQUESTS, Stream, message, produces, sample
from xgr_stream.errors import HistoryError, InvalidEvent, MessageTooLarge, TopologyError
from xgr_stream.stream import changelog, codec
from xgr_stream.stream.changelog import Entry
from xgr_stream.stream.records import MAX_HEADERS, Record, Unread, passed_on
from xgr_stream.types import UserEvent


def users_on(stream: Stream, partition: int, count: int) -> list[str]:
    names = (f"user-{i}" for i in range(10_000))
    return [name for name in names if stream.partition(name) == partition][:count]


def restore_into(stream: Stream, partition: int, log: list[Record]) -> None:
    stream.processor.restore(partition, log)
    stream.processor.restored(partition)


def test_an_event_is_written_to_the_changelog_and_acknowledged_after_it() -> None:
    stream = Stream()
    outputs = stream.process(stream.event("u", "item-7"))
    partition = stream.partition("u")
    [produce] = produces(outputs)
    assert (produce.topic, produce.partition) == (CHANGELOG, partition)
    assert Entry(produce.key, produce.value) == Entry(
        changelog.delta_key("u", 0), bytes.fromhex("940100a66974656d2d37c0")
    )
    assert stream.processor.committable(EVENTS, partition) is None
    assert stream.processor.backlog(EVENTS, partition) == 1
    stream.acknowledge(outputs)
    assert stream.processor.committable(EVENTS, partition) == 1
    assert stream.processor.backlog(EVENTS, partition) == 0


def test_offsets_are_committable_in_order_only() -> None:
    stream = Stream()
    [first, second, third] = [output for _ in range(3) for output in stream.process(stream.event("u"))]
    partition = stream.partition("u")
    stream.acknowledge([third, second])
    assert stream.processor.committable(EVENTS, partition) is None
    stream.acknowledge([first])
    assert stream.processor.committable(EVENTS, partition) == 3


def test_events_taken_together_are_acknowledged_together() -> None:
    stream = Stream(segment_events=3)
    users = ("u", "u", "v", "u")
    records = [stream.event(user, partition=stream.partition("u")) for user in users]
    stream.processor._placement._place = None
    [output] = stream.process(*records[:3], stream.event("u", partition=records[0].partition))
    assert list(output.offsets) == [0, 1, 2, 4]
    assert stream.processor.backlog(EVENTS, records[0].partition) == 4
    [clean_up] = stream.acknowledge([output])
    assert [p.key for p in clean_up.produces] == [changelog.delta_key("u", 0), changelog.delta_key("u", 1)]
    assert stream.processor.committable(EVENTS, records[0].partition) == 5


def test_a_sealed_segment_replaces_its_deltas_once_it_is_acknowledged() -> None:
    stream = Stream(segment_events=3)
    outputs = stream.process(*(stream.event("u", f"item-{i}") for i in range(3)))
    assert [produce.key for produce in produces(outputs)] == [
        changelog.delta_key("u", 0),
        changelog.delta_key("u", 1),
        changelog.segment_key("u", 0),
    ]
    [clean_up] = stream.acknowledge(outputs)
    assert clean_up.topic is None
    assert [(p.key, p.value) for p in clean_up.produces] == [
        (changelog.delta_key("u", 0), None),
        (changelog.delta_key("u", 1), None),
    ]
    stream.acknowledge([clean_up])
    assert stream.processor.committable(EVENTS, stream.partition("u")) == 3


def test_a_replayed_event_changes_nothing_and_is_acknowledged_at_once() -> None:
    stream = Stream()
    record = stream.event("u")
    log = [Record(CHANGELOG, p.partition or 0, i, p.key, p.value, 0) for i, p in enumerate(stream.run(record))]

    successor = Stream(restored=False)
    partition = record.partition
    restore_into(successor, partition, log)
    assert successor.process(record) == []
    assert successor.processor.committable(EVENTS, partition) == 1
    view = successor.history.view("u")
    assert view is not None
    assert view.event_count == 1
    assert sample(successor, "xgr_events_replayed_total") == 1


def test_an_offset_redelivered_while_it_is_open_is_passed_over() -> None:
    stream = Stream()
    record = stream.event("u")
    assert len(stream.process(record, record)) == 1


def test_events_are_held_until_their_partition_is_restored() -> None:
    stream = Stream(restored=False)
    record = stream.event("u")
    assert stream.process(record) == []
    assert stream.history.view("u") is None
    assert stream.processor.backlog(EVENTS, record.partition) == 1
    stream.processor.restored(record.partition)
    assert len(stream.processor.poll()) == 1
    assert [view.user_id for view in stream.worker.wanted] == ["u"]


def test_each_user_is_offered_for_appending_once_a_batch() -> None:
    stream = Stream()
    a, b = users_on(stream, 0, 2)
    stream.process(stream.event(a), stream.event(b), stream.event(a))
    assert sorted((view.user_id, view.event_count) for view in stream.worker.wanted) == sorted([(a, 2), (b, 1)])


def test_an_unknown_item_is_kept_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    with caplog.at_level(logging.WARNING):
        stream.process(*(stream.event("u", "no-such") for _ in range(3)))
    view = stream.history.view("u")
    assert view is not None
    assert view.event_count == 3
    assert sample(stream, "xgr_events_unknown_item_total") == 3
    assert [r.message for r in caplog.records] == [
        "the catalog does not know item 'no-such'; its events are kept, without tokens"
    ]


@pytest.mark.parametrize(
    ("value", "key", "reason", "text"),
    [
        (b"\xff\xff", b"u", "malformed", r"message must be a map, as msgpack or as JSON, not b'\xff\xff'"),
        (b'[{"v": 1}]', b"u", "malformed", "message must be a map, as msgpack or as JSON, not b'[{\"v\": 1}]'"),
        (b"", b"u", "malformed", "must not be empty"),
        (b"{", b"u", "malformed", "message is not JSON"),
        ({"item_id": "a"}, b"u", "malformed", "v must be"),
        ({"v": 2, "item_id": "a"}, b"u", "unsupported_version", "v must be 1, not 2"),
        ({"v": 1}, b"u", "invalid_event", "item_id must be given"),
        ({"v": 1, "item_id": 7}, b"u", "invalid_event", "item_id must be a string"),
        ({"v": 1, "item_id": "a", "timestamp_ms": "now"}, b"u", "invalid_event", "timestamp_ms"),
        ({"v": 1, "item_id": "a", "user_id": "w"}, b"u", "invalid_event", "user_id must equal the record's key"),
        ({"v": 1, "item_id": "a"}, None, "invalid_event", "missing from both"),
        ({"v": 1, "item_id": "a"}, b"\xff", "invalid_event", "key must be the user's id in UTF-8"),
        (b"\x81\xa1v\x01" + b"x" * (2 << 20), b"u", "too_large", "message must be at most"),
    ],
)
def test_a_bad_event_becomes_a_dead_letter_and_the_stream_goes_on(
    value: object, key: bytes | None, reason: str, text: str
) -> None:
    stream = Stream()
    bad = stream.record(EVENTS, "u", value, key=key)  # type: ignore[arg-type]
    outputs = stream.process(bad, stream.event("u"))
    [dead, _] = produces(outputs)
    letter = message(dead)
    assert (dead.topic, dead.key) == (DEAD, key)
    assert letter["reason"] == reason
    assert text in letter["message"]
    assert (letter["topic"], letter["partition"], letter["offset"]) == (EVENTS, bad.partition, 0)
    assert letter["value"] == (None if bad.value is None else bad.value[: 64 * 1024])
    assert letter["value_bytes"] == (None if bad.value is None else len(bad.value))
    stream.acknowledge(outputs)
    assert stream.processor.committable(EVENTS, bad.partition) == 2
    assert sample(stream, "xgr_dead_letters_total", reason=reason) == 1


def test_an_event_placed_by_another_partitioner_is_refused() -> None:
    stream = Stream()
    wrong = (stream.partition("u") + 1) % PARTITIONS
    [dead] = produces(stream.process(stream.event("u", partition=wrong)))
    assert message(dead)["reason"] == "misplaced"
    assert "murmur2" in message(dead)["message"]
    assert sample(stream, "xgr_misplaced_records_total", topic=EVENTS) == 1
    assert stream.history.view("u") is None


def test_any_partitioner_takes_all_but_a_user_twice() -> None:
    stream = Stream(partitioner="any")
    assert produces(stream.process(stream.event("u", partition=2)))[0].topic == CHANGELOG
    [dead] = produces(stream.process(stream.event("u", partition=1)))
    assert message(dead)["reason"] == "invalid_event"


def test_the_applications_own_events_are_read_by_its_function() -> None:
    stream = Stream()

    def decode(record: Record) -> UserEvent:
        if record.value == b"bug":
            raise ZeroDivisionError
        if record.value == b"no":
            raise InvalidEvent("item must be known, not 'no'")
        return UserEvent("u", (record.value or b"").decode())

    stream.decode_event = decode
    stream.processor = stream.make()
    stream.processor.assign([stream.partition("u")], PARTITIONS)
    stream.processor.restored(stream.partition("u"))
    outputs = stream.process(*(stream.record(EVENTS, "u", value) for value in (b"item-1", b"bug", b"no")))
    assert [p.topic for p in produces(outputs)] == [CHANGELOG, DEAD, DEAD]
    assert "ZeroDivisionError" in message(produces(outputs)[1])["message"]


def surrogate() -> None:
    raise InvalidEvent("item must be sold, not '\ud800'")


def out_of_memory() -> None:
    raise MemoryError


def applications(stream: Stream, function: Callable[[], object]) -> Record:
    """A record that the application's function makes this of."""
    stream.decode_event = lambda _: function()
    stream.processor = stream.make()
    stream.processor.assign([stream.partition("u")], PARTITIONS)
    stream.processor.restored(stream.partition("u"))
    return stream.record(EVENTS, "u", b"anything")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda: {"user_id": "u", "item_id": "i"}, "must return a UserEvent or None, not dict"),
        (lambda: True, "must return a UserEvent or None, not bool"),
        (lambda: ("u", "i"), "must return a UserEvent or None, not tuple"),
        (lambda: SimpleNamespace(user_id="u", item_id=5, action=None), "not SimpleNamespace"),
        (surrogate, "item must be sold, not '\\ud800'"),
    ],
)
def test_whatever_the_applications_function_does_becomes_a_dead_letter(
    function: Callable[[], object], why: str
) -> None:
    """An error that ended the worker would end each one that comes to the record."""
    stream = Stream()
    [letter] = stream.run(applications(stream, function))
    assert letter.topic == DEAD
    assert message(letter)["reason"] == "invalid_event"
    assert why in message(letter)["message"]
    assert stream.processor.committable(EVENTS, stream.partition("u")) == 1


def test_an_event_that_there_is_no_memory_for_is_not_put_aside() -> None:
    stream = Stream()
    record = applications(stream, out_of_memory)
    with pytest.raises(MemoryError):
        stream.process(record)
    assert stream.processor.committable(EVENTS, record.partition) is None
    assert sample(stream, "xgr_dead_letters_total", reason="invalid_event") == 0


def test_revoking_drops_history_prefixes_and_outputs_without_acknowledging() -> None:
    stream = Stream()
    record = stream.event("u")
    kept = stream.process(record)
    stream.processor.process([stream.event("u")])
    stream.processor.revoke([record.partition])
    assert stream.processor.poll() == []
    assert stream.history.view("u") is None
    assert stream.worker.forgotten == ["u"]
    stream.acknowledge(kept)
    assert stream.processor.committable(EVENTS, record.partition) is None
    assert stream.process(stream.event("u")) == []
    assert record.partition not in stream.processor.assigned


def test_a_partition_comes_back_as_it_was() -> None:
    stream = Stream(segment_events=3)
    log = [Record(CHANGELOG, 0, 0, p.key, p.value, 0) for p in stream.run(*(stream.event("u") for _ in range(20)))]
    partition = stream.partition("u")
    before = stream.history.view("u")
    stream.processor.revoke([partition])
    stream.processor.assign([partition], PARTITIONS)
    assert stream.processor.restoring == {partition}
    restore_into(stream, partition, log)
    after = stream.history.view("u")
    assert before is not None
    assert after is not None
    assert (after.event_count, after.first_number, after.last_offset) == (20, before.first_number, 19)
    assert after.items.tolist() == before.items.tolist()
    stream.history.check_integrity()


def test_the_most_recently_active_users_of_a_restored_partition_are_warmed_first() -> None:
    stream = Stream(partitioner="any", warm_users=2)
    users = ["a", "b", "c", "a"]
    log = [
        Record(CHANGELOG, 0, 0, p.key, p.value, 0) for p in stream.run(*(stream.event(u, partition=0) for u in users))
    ]
    stream.processor.revoke([0])
    stream.processor.assign([0], PARTITIONS)
    stream.worker.wanted.clear()
    restore_into(stream, 0, log)
    assert [(view.user_id, view.event_count) for view in stream.worker.wanted] == [("a", 2), ("c", 1)]


def test_a_restore_cleans_up_what_a_dead_worker_left() -> None:
    stream = Stream(segment_events=3)
    written = produces(stream.process(*(stream.event("u") for _ in range(3))))
    successor = Stream(restored=False, segment_events=3)
    partition = stream.partition("u")
    restore_into(successor, partition, [Record(CHANGELOG, partition, 0, p.key, p.value, 0) for p in written])
    [clean_up] = successor.processor.poll()
    assert {(p.key, p.value) for p in clean_up.produces} == {(changelog.delta_key("u", n), None) for n in (0, 1)}


def test_a_history_ahead_of_its_topic_stops_the_partition() -> None:
    stream = Stream()
    record = stream.event("u", offset=50)
    log = [Record(CHANGELOG, 0, 0, p.key, p.value, 0) for p in stream.run(record)]
    successor = Stream(restored=False)
    successor.processor.restore(record.partition, log)
    with pytest.raises(HistoryError, match=r"user-events-\d ends at 50, but its history includes offset 50"):
        successor.processor.restored(record.partition, end=50)
    assert record.partition in successor.processor.restoring


def test_the_number_of_partitions_may_not_change() -> None:
    with pytest.raises(TopologyError, match="must keep its 4 partitions, not grow to 8"):
        Stream().processor.assign([5], 8)


def test_a_foreign_topic_is_the_drivers_mistake() -> None:
    stream = Stream()
    with pytest.raises(TopologyError, match="topic must be 'user-events' or 'rec-requests', not 'other'"):
        stream.process(stream.record("other", "u", b""))


def test_nothing_is_taken_after_close() -> None:
    stream = Stream()
    stream.processor.close()
    assert stream.process(stream.event("u"), stream.request("u")) == []
    assert stream.processor.backlog(EVENTS, stream.partition("u")) == 0
    assert stream.processor.backlog(REQUESTS, stream.partition("u")) == 0


def test_events_are_behind_until_they_are_processed() -> None:
    stream = Stream(restored=False)
    stream.process(stream.event("u"))
    number = stream.partition("u")
    assert stream.processor.events_behind(number, 3) == 3  # held until the history is there
    stream.processor.restored(number, position=0)
    assert stream.processor.events_behind(number, 3) == 2
    stream.process(stream.event("u"), stream.event("u"))
    assert stream.processor.events_behind(number, 3) == 0
    stream.processor.revoke([number])
    assert stream.processor.events_behind(number, 9) == 0


@pytest.mark.parametrize("topic", [EVENTS, REQUESTS])
@pytest.mark.parametrize("kept", [b"", codec.encode({"v": 1, "item_id": "a", "request_id": "r"}, "msgpack")])
def test_what_was_not_read_counts_as_nothing_else(topic: str, kept: bytes) -> None:
    """Whatever it began with."""
    stream = Stream()
    unread = Unread(MessageTooLarge("a record must be at most so large"), kept, 2_000_000 if kept else None)
    bad = stream.record(topic, "u", b"", key=b"u")._replace(value=unread)
    [dead] = produces(stream.process(bad))
    letter = message(dead)
    assert (dead.topic, letter["reason"], letter["message"]) == (DEAD, "too_large", "a record must be at most so large")
    assert (letter["value"], letter["value_bytes"]) == ((kept, 2_000_000) if kept else (None, None))


@pytest.mark.parametrize(
    ("name", "count", "left"),
    [("x", MAX_HEADERS - 1, MAX_HEADERS - 1), ("x", MAX_HEADERS, 0), ("traceparent", MAX_HEADERS, 0)],
)
def test_one_header_more_than_are_passed_on_can_be_read(name: str, count: int, left: int) -> None:
    """A copy's source is one."""
    assert len(passed_on(((name, b""),) * count)) == left
    assert passed_on((("x", b""),) * MAX_HEADERS + (("traceparent", b"1"),)) == (("traceparent", b"1"),)
