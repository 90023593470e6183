"""Batches are read as ever, whatever their format; names of headers that are no UTF-8 hide nothing beside them."""

from __future__ import annotations

import gzip
import time
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher
import pytest
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from tests.stream.record_batches import (
    CODECS,
    GOOD,
    GZIP,
    HEAD,
    MIB,
    PLAIN,
    SNAPPY,
    TP,
    Written,
    batch,
    name_of,
    read,
    records_of,
    spoilt,
    with_records,
)
from xgr_stream.stream.batches import Batches, Limits, read_any_batch


@pytest.mark.parametrize("compression", CODECS)
def test_what_can_be_read_is_read_as_ever(compression: int) -> None:
    data = batch(GOOD, 0, compression) + batch(GOOD, 3, compression)
    assert read(Batches(data)) == read(MemoryRecords(data))
    assert len(read(Batches(data))) == 6


@pytest.mark.parametrize("length", [1, 2, 70])
@pytest.mark.parametrize("place", range(4))
def test_nothing_is_lost_beside_a_name_that_is_no_utf_8(place: int, length: int) -> None:
    """Nor is anything else changed, the same bytes in a value among it."""
    bad: Written = [(b"Z", b"ZZ", [("before", b"Z"), (name_of(length), b"Z" * 3), ("", None), (name_of(length), None)])]
    records = GOOD[:place] + bad + GOOD[place:]
    data = batch(GOOD, 0, 0) + spoilt(records, 3) + batch(GOOD, 7, 0)
    with pytest.raises(UnicodeDecodeError):
        read(MemoryRecords(data))
    found = read(Batches(data))
    assert [offset for offset, *_ in found] == list(range(10))
    headers = [("before", b"\xff"), ("?" * length, b"\xff" * 3), ("", None), ("?" * length, None)]
    assert found[3 + place] == (3 + place, b"\xff", b"\xff\xff", headers)
    others = [record[1:] for record in found if record[0] != 3 + place]
    assert others == [record[1:] for record in read(MemoryRecords(batch(GOOD, 0, 0)))] * 3


def test_many_names_that_are_no_utf_8_take_time_once() -> None:
    """Not all that is behind each of them again."""
    bad: Written = [(b"k", b"v", [(name_of(3), b"")] * 90)] * 1_500
    data = batch(bad, 0, PLAIN).replace(b"ZZZ", b"\xff\xff\xff")
    begun = time.process_time()
    found = read(Batches(data, Limits(MIB)))
    assert time.process_time() - begun < 2
    assert found == [(offset, b"k", b"v", [("???", b"")] * 90) for offset in range(1_500)]


def test_a_name_that_was_compressed() -> None:
    plain = spoilt([*GOOD, (b"k", b"v", [(name_of(3), b"")])], 0)
    data = with_records(plain, GZIP, gzip.compress(plain[HEAD:]))
    found = read(Batches(data))
    assert found == read(Batches(data, Limits(MIB)))
    assert found[-1] == (3, b"k", b"v", [("???", b"")])


def test_aborted_transactions_are_told_by_what_is_wrapped() -> None:
    wrapped: Any = Batches(batch(GOOD, 5, 0)).next_batch()
    assert (wrapped.base_offset, wrapped.next_offset, wrapped.is_control_batch) == (5, 8, False)
    assert next(wrapped).offset == 5
    assert SimpleNamespace(ended=Batches(b"").next_batch()).ended is None


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [PLAIN, GZIP, SNAPPY])
def test_batches_of_former_formats_are_read_as_ever(magic: int, codec: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, codec, 1_000_000)
    for offset in range(3):
        builder.append(offset, 5, b"k%d" % offset, b"v" * 100)
    data = bytes(builder.build())
    assert read(Batches(data, Limits(MIB))) == read(MemoryRecords(data))
    assert len(read(MemoryRecords(data))) == 3


def test_names_that_are_no_utf_8_where_nothing_is_bounded() -> None:
    """Records before them come once."""
    data = spoilt([*GOOD, (b"k", b"v", [(name_of(3), b"")]), *GOOD], 0)
    assert [one.offset for one in records_of(Batches(data))] == list(range(7))


@pytest.mark.parametrize("limits", [None, Limits()])
@pytest.mark.parametrize("codec", [PLAIN, GZIP])
def test_formats_may_be_mixed_in_one_fetch(limits: Limits | None, codec: int) -> None:
    """A segment that was written while the format changed. aiokafka takes all to be of the first one's."""
    pieces, expected = [], []
    for first, magic in zip(range(0, 12, 3), (1, 2, 0, 2), strict=True):
        if magic == 2:
            pieces.append(batch(GOOD, first, codec))
        else:
            builder = LegacyRecordBatchBuilder(magic, codec, 1 << 20)
            for offset in range(first, first + 3):
                builder.append(offset, 5, b"k", b"v")
            pieces.append(bytes(builder.build()))
        expected += range(first, first + 3)
    assert [one[0] for one in read(Batches(b"".join(pieces), limits))] == expected
    cut = b"".join(pieces)[: -len(pieces[-1]) // 2]
    assert [one[0] for one in read(Batches(cut, limits))] == expected[:-3]


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_that_compaction_has_emptied_is_come_past(codec: int) -> None:
    emptied = bytearray(with_records(batch(GOOD, 3, PLAIN), codec, b""))
    emptied[57:61] = bytes(4)
    data = batch(GOOD, 0, PLAIN) + bytes(emptied) + batch(GOOD, 6, PLAIN)
    assert [one[0] for one in read(Batches(data, Limits()))] == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("control", [0x20, 0x30])
def test_a_marker_that_compaction_has_emptied_is_come_past(control: int) -> None:
    """A broker keeps the batch of a producer's last marker, without the marker (`BatchRetention.RETAIN_EMPTY`)."""
    marker = bytearray(with_records(batch(GOOD[:1], 3, PLAIN), PLAIN, b""))
    marker[22], marker[43:51], marker[57:61] = control, (5).to_bytes(8, "big"), bytes(4)
    data = batch(GOOD, 0, PLAIN) + bytes(marker) + batch(GOOD, 4, PLAIN)
    read_any_batch()
    fetched: Any = aiokafka.consumer.fetcher.PartitionRecords(TP, Batches(data), [], 0, None, None, False, 1)
    assert [one.offset for one in fetched] == [0, 1, 2, 4, 5, 6]
