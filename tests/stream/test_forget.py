"""A null value on a user's key, through the processor: history, prefix, changelog, offsets."""

from __future__ import annotations

import pytest

from tests.stream.harness import DEAD, EVENTS, Stream, message, produces, sample
from xgr_stream.history import user_digest
from xgr_stream.stream import changelog
from xgr_stream.stream.records import Produce, Record


def forget(stream: Stream, user: str, **options: object) -> Record:
    return stream.record(EVENTS, user, None, **options)  # type: ignore[arg-type]


def keys(written: list[Produce], *, deleted: bool) -> list[bytes | None]:
    return [produce.key for produce in written if (produce.value is None) is deleted]


def test_all_of_a_user_goes_after_it_is_durable_that_they_were_forgotten() -> None:
    stream = Stream(segment_events=3)
    stream.run(*(stream.event("u", f"item-{i}") for i in range(5)))
    partition = stream.partition("u")

    outputs = stream.process(forget(stream, "u"))
    assert stream.history.view("u") is None
    assert stream.worker.forgotten == ["u"]
    assert [tuple(p[:4]) for p in produces(outputs)] == [
        (stream.config.topics.changelog, partition, *changelog.forget_entry("u", 5))
    ]

    outputs = stream.acknowledge(outputs)
    assert keys(produces(outputs), deleted=True) == [
        changelog.delta_key("u", 3),
        changelog.delta_key("u", 4),
        changelog.segment_key("u", 0),
    ]
    assert stream.processor.committable(EVENTS, partition) == 5
    stream.acknowledge(outputs)
    assert stream.processor.committable(EVENTS, partition) == 6
    assert sample(stream, "xgr_users_forgotten_total") == 1


def test_a_forgotten_user_comes_back_as_a_new_one_under_other_keys() -> None:
    stream = Stream(segment_events=2)
    stream.run(stream.event("u"), forget(stream, "u"))
    written = stream.run(*(stream.event("u", f"item-{i}") for i in range(3)))
    view = stream.history.view("u")
    assert view is not None
    assert (view.event_count, view.life) == (3, 1)
    assert keys(written, deleted=False) == [
        changelog.delta_key("u", 0, 1),
        changelog.segment_key("u", 0, 1),
        changelog.delta_key("u", 2, 1),
    ]
    assert keys(written, deleted=True) == [changelog.delta_key("u", 0, 1)]


def test_to_be_forgotten_again_replaces_what_says_so() -> None:
    stream = Stream()
    stream.run(stream.event("u"), forget(stream, "u"), stream.event("u"))
    written = stream.run(forget(stream, "u"))
    assert keys(written, deleted=False) == [changelog.forget_key(user_digest("u"), 3)]
    assert keys(written, deleted=True) == [changelog.delta_key("u", 0, 1), changelog.forget_key(user_digest("u"), 1)]


@pytest.mark.parametrize("before", [0, 2])
def test_a_replay_and_an_unknown_user_change_nothing(before: int) -> None:
    stream = Stream()
    stream.run(*(stream.event("u") for _ in range(before)))
    record = forget(stream, "u")
    stream.run(record)
    stream.processor.revoke([record.partition])
    stream.processor.assign([record.partition], 4)
    stream.processor.restored(record.partition)
    assert stream.run(record) == []
    assert stream.processor.committable(EVENTS, record.partition) == record.offset + 1


def test_events_from_before_that_are_read_again_do_not_bring_the_user_back() -> None:
    stream = Stream()
    records = [stream.event("u"), forget(stream, "u")]
    written = stream.run(*records)
    partition = records[0].partition
    stream.processor.revoke([partition])
    stream.processor.assign([partition], 4)
    stream.processor.restore(partition, [Record("c", partition, i, p.key, p.value, 0) for i, p in enumerate(written)])
    stream.processor.restored(partition)
    assert stream.run(*records) == []
    assert stream.history.view("u") is None


def test_a_late_write_of_a_frozen_worker_is_deleted_at_the_next_restore() -> None:
    stream = Stream()
    late = changelog.Entry(changelog.delta_key("u", 1), bytes.fromhex("940101a66974656d2d37c0"))
    partition = stream.partition("u")
    stream.processor.revoke([partition])
    stream.processor.assign([partition], 4)
    log = [changelog.forget_entry("u", 2), late]
    stream.processor.restore(partition, [Record("c", partition, i, *entry, 0) for i, entry in enumerate(log)])
    stream.processor.restored(partition)
    assert stream.history.view("u") is None
    assert keys(produces(stream.processor.poll()), deleted=True) == [late.key]


def test_a_request_under_way_leaves_no_prefix_behind() -> None:
    stream = Stream()
    stream.run(stream.event("u"))
    stream.process(stream.request("u"))
    stream.process(forget(stream, "u"))
    assert stream.worker.forgotten == ["u"]
    stream.answer()
    assert stream.worker.forgotten == ["u", "u"]


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"x" * 257])
def test_a_null_value_without_a_users_key_is_a_dead_letter(key: bytes | None) -> None:
    stream = Stream(partitioner="any")
    [dead] = stream.run(forget(stream, "u", key=key))
    assert dead.topic == DEAD
    assert message(dead)["reason"] == "invalid_event"


def test_only_the_users_own_partition_may_forget_them() -> None:
    stream = Stream()
    stream.run(stream.event("u"))
    [dead] = stream.run(forget(stream, "u", partition=(stream.partition("u") + 1) % 4))
    assert message(dead)["reason"] == "misplaced"
    assert stream.history.view("u") is not None
