"""Records as aiokafka decodes them, one by one and by the batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from xgr_stream.stream.plain_reading import read_plainly

LOG, OTHER = TopicPartition("log", 3), TopicPartition("other", 3)
WRITTEN = [(b"a", b"1"), (b"b", None), (b"a", b"")]


class State:
    """Of a partition that is read."""

    paused = False

    def __init__(self, position: int) -> None:
        self.position = position

    def consumed_to(self, position: int) -> None:
        self.position = position


def batch(first: int = 0, *, codec: int = 0) -> bytearray:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1_000)
    for offset, (key, value) in enumerate(WRITTEN):
        builder.append(offset, timestamp=7, key=key, value=value, headers=[])
    built = bytearray(builder.build())
    built[:8] = first.to_bytes(8, "big")  # which the checksum is not of
    return built


def fetched(tp: TopicPartition, data: bytes | None = None, begin: int = 0) -> FetchResult:
    state = State(begin)
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    memory = MemoryRecords(bytes(batch()) if data is None else data)
    records = PartitionRecords(tp, memory, [], begin, None, None, True, 0)
    return FetchResult(tp, assignment=assignment, partition_records=records, backoff=0)


def test_records_of_the_topic_are_returned_as_they_were_decoded() -> None:
    fetcher: Any = SimpleNamespace(_records={})
    read_plainly(SimpleNamespace(_fetcher=fetcher), "log")  # type: ignore[arg-type]
    fetcher._records[LOG], fetcher._records[OTHER] = fetched(LOG), fetched(OTHER)

    plain, usual = fetcher._records[LOG].getall(), fetcher._records[OTHER].getall()

    assert [(r.offset, r.key, r.value, r.timestamp) for r in plain] == [
        (i, key, value, 7) for i, (key, value) in enumerate(WRITTEN)
    ]
    assert not hasattr(plain[0], "topic"), "aiokafka made records of its own: it does it in another way now"
    assert [(r.topic, r.offset, r.key, r.value) for r in usual] == [
        ("other", i, key, value) for i, (key, value) in enumerate(WRITTEN)
    ]


def in_batches(data: bytes, begin: int = 0, *, at_once: int) -> FetchResult:
    fetcher: Any = SimpleNamespace(_records={})
    read_plainly(SimpleNamespace(_fetcher=fetcher), "log", at_once=at_once)  # type: ignore[arg-type]
    fetcher._records[LOG] = fetched(LOG, data, begin)
    result: FetchResult = fetcher._records[LOG]
    return result


@pytest.mark.parametrize("codec", [0, 1])
def test_whole_batches_are_returned_until_they_are_enough(codec: int) -> None:
    """Each record once and in order, and the position is behind those returned."""
    data = b"".join(bytes(batch(first, codec=codec)) for first in (0, 10, 13, 16))
    result = in_batches(data, at_once=4)
    state = result._assignment.state_value(LOG)

    first, positioned = result.getall(), state.position
    assert [r.offset for r in first] == [0, 1, 2, 10, 11, 12]
    assert [(r.key, r.value, r.timestamp) for r in first] == [(key, value, 7) for key, value in WRITTEN] * 2
    assert (positioned, result.has_more()) == (13, True)
    assert [r.offset for r in result.getall()] == [13, 14, 15, 16, 17, 18]
    assert result.getall() == []
    assert (state.position, result.has_more()) == (19, False)


def test_a_batch_that_begins_before_what_was_asked_for_is_cut() -> None:
    result = in_batches(bytes(batch(10)) + bytes(batch(13)), 12, at_once=100)
    assert [r.offset for r in result.getall()] == [12, 13, 14, 15]


def test_nothing_is_returned_of_a_place_that_the_reader_has_left() -> None:
    result = in_batches(bytes(batch()), at_once=100)
    result._assignment.state_value(LOG).position = 40
    assert result.getall() == []


def test_a_batch_that_is_broken_is_told() -> None:
    data = batch()
    data[-1] ^= 1
    with pytest.raises(CorruptRecordException):
        in_batches(bytes(data), at_once=100).getall()
