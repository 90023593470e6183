"""Copies of other topics' records, through the processor and its changelog."""

from __future__ import annotations

import logging
from typing import Any

import msgpack
import pytest

from tests.stream.harness import CHANGELOG, DEAD, EVENTS, Stream, produces, sample
from xgr_stream.history import SourcePosition, user_digest
from xgr_stream.stream import changelog
from xgr_stream.stream.records import Record
from xgr_stream.stream.source_header import SOURCE_HEADER, source_header

VIEWS = "page-views"


def copy(stream: Stream, user: str, offset: int, item: str = "item-1", *, partition: int = 0, **options: Any) -> Record:
    source = SourcePosition(VIEWS, partition, offset)
    return stream.event(user, item, **options)._replace(headers=(source_header(source),))


def items(stream: Stream, user: str) -> list[str]:
    view = stream.history.view(user)
    return [] if view is None else [stream.history.item_names[i] for i in view.items.tolist()]


def test_a_copy_that_comes_again_changes_nothing_and_is_acknowledged_at_once() -> None:
    stream = Stream()
    partition = stream.partition("u")
    stream.run(copy(stream, "u", 5, "a"), copy(stream, "u", 6, "b"))
    outputs = stream.process(*(copy(stream, "u", offset, "again") for offset in (5, 6)))
    assert (outputs, items(stream, "u")) == ([], ["a", "b"])
    assert stream.processor.committable(EVENTS, partition) == 4
    assert sample(stream, "xgr_events_replayed_total") == 2


def test_sources_and_their_partitions_have_watermarks_of_their_own() -> None:
    stream = Stream()
    stream.run(copy(stream, "u", 5, "a"), copy(stream, "u", 5, "b", partition=1))
    stream.run(stream.event("u", "c")._replace(headers=(source_header(SourcePosition("buys", 0, 5)),)))
    assert items(stream, "u") == ["a", "b", "c"]


def test_an_event_whose_header_can_not_be_read_counts() -> None:
    stream = Stream()
    stream.run(*(stream.event("u")._replace(headers=((SOURCE_HEADER, b"\xff"),)) for _ in range(2)))
    assert len(items(stream, "u")) == 2


def test_only_records_of_copies_name_sources() -> None:
    stream = Stream(segment_events=2)
    delta, segment = stream.run(copy(stream, "u", 5, "a"), stream.event("u", "b"))[:2]
    assert msgpack.unpackb(delta.value) == [1, 0, "a", None, [[VIEWS, 0, 5]]]
    assert msgpack.unpackb(segment.value) == [1, 1, ["a", "b"], None, [[VIEWS, 0, 5]]]
    plain = Stream(segment_events=2)
    written = plain.run(plain.event("u", "a"), plain.event("u", "b"))
    assert [len(msgpack.unpackb(produce.value)) for produce in written[:2]] == [4, 4]


def test_a_watermark_is_kept_by_whose_event_raised_it_last() -> None:
    stream = Stream(segment_events=2)
    v = next(user for user in map(str, range(100)) if stream.partition(user) == stream.partition("u"))
    segment = stream.run(copy(stream, "u", 5), copy(stream, v, 6), stream.event("u"))[2]
    assert msgpack.unpackb(segment.value) == [1, 2, ["item-1", "item-1"], None]
    forget = stream.run(stream.record(EVENTS, v, None))[0]
    assert (forget.topic, forget.value) == (CHANGELOG, msgpack.packb([1, [[VIEWS, 0, 6]]]))
    [watermark] = stream.history.watermarks(stream.partition("u"))
    assert watermark.holder == user_digest(v)  # nothing names who was forgotten


def test_a_copy_that_is_refused_raises_no_watermark() -> None:
    """Nothing in the changelog would hold it: another worker would not know of it."""
    stream = Stream()
    wrong = copy(stream, "u", 5, partition=0)._replace(value=b"\xff")
    [letter] = produces(stream.process(wrong))
    assert letter.topic == DEAD
    assert stream.history.watermarks(stream.partition("u")) == []


def test_a_partition_that_goes_takes_its_watermarks_along() -> None:
    stream = Stream()
    partition = stream.partition("u")
    stream.run(copy(stream, "u", 5))
    stream.processor.revoke([partition])
    assert stream.history.watermarks(partition) == []


def test_the_next_owner_passes_over_what_comes_again_once_the_user_was_forgotten() -> None:
    stream = Stream()
    partition = stream.partition("u")
    log = stream.run(copy(stream, "u", 5), stream.record(EVENTS, "u", None))
    last = {produce.key: produce for produce in log}
    stream.processor.revoke([partition])
    stream.processor.assign([partition], 4)
    kept = [Record(CHANGELOG, partition, at, p.key, p.value, 0) for at, p in enumerate(last.values()) if p.value]
    stream.processor.restore(partition, kept)
    stream.processor.restored(partition)
    assert stream.run(copy(stream, "u", 5), copy(stream, "u", 6, "b"))
    assert items(stream, "u") == ["b"]


def test_a_source_that_begins_again_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    stream.run(copy(stream, "u", 10_500))
    with caplog.at_level(logging.WARNING):
        stream.run(copy(stream, "u", 10_000))  # a repartitioner that began again
        assert not caplog.records
        stream.run(copy(stream, "u", 0), copy(stream, "u", 1))
    [record] = caplog.records
    assert "passes over copies of page-views-0, 10500 offsets below" in record.getMessage()


def test_a_forged_position_silences_its_source_until_a_replay_without_headers(caplog: pytest.LogCaptureFixture) -> None:
    """As docs/operations.md has it."""
    stream = Stream()
    written = [copy(stream, "u", 5), copy(stream, "u", 1 << 62, "item-2"), copy(stream, "u", 6, "item-3")]
    with caplog.at_level(logging.WARNING):
        stream.run(*written)
    assert items(stream, "u") == ["item-1", "item-2"]
    [record] = caplog.records
    assert "or a record named a position that it has not come to" in record.getMessage()
    anew = Stream()
    anew.run(*(anew.event("u", f"item-{n}") for n in (1, 3)), copy(anew, "u", 7, "item-4"))
    assert items(anew, "u") == ["item-1", "item-3", "item-4"]


@pytest.mark.parametrize(
    "sources", ["page-views", 3, [["page-views", 0]], [["page-views", 0, -1]], [7], {"page-views": 3}]
)
@pytest.mark.parametrize("kind", ["delta", "segment", "forget"])
def test_sources_that_can_not_be_read_stop_the_partition(kind: str, sources: object) -> None:
    stream = Stream(segment_events=2, restored=False)
    key, value = {
        "delta": (changelog.delta_key("u", 0), [1, 0, "a", None]),
        "segment": (changelog.segment_key("u", 0), [1, 0, ["a", "b"], None]),
        "forget": (changelog.forget_key(user_digest("u"), 0), [1]),
    }[kind]
    with pytest.raises(changelog.HistoryError, match="can't be read"):
        stream.processor.restore(0, [Record(CHANGELOG, 0, 0, key, msgpack.packb([*value, sources]), 0)])
