"""Headers whose names are no UTF-8: their records are read, and those around them as they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from xgr_stream.stream.header_names import AnyNames

TP = TopicPartition("requests", 0)
GZIP = 1
Written = list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]]
GOOD: Written = [(b"a", b"1", []), (None, b"2", [("trace", b"00"), ("\N{SNOWMAN}", None)]), (b"c", None, [("x", b"")])]


def name_of(length: int) -> str:
    """Of a header that is spoilt afterwards."""
    return "Z" * length


def batch(records: Written, first: int, compression: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, 1_000_000)
    for offset, (key, value, headers) in enumerate(records):
        builder.append(offset, timestamp=7, key=key, value=value, headers=headers)
    data = bytearray(builder.build())
    data[:8] = first.to_bytes(8, "big")
    return bytes(data)


def spoilt(records: Written, first: int) -> bytes:
    """All Z are bytes that begin no character."""
    return batch(records, first, 0).replace(b"Z", b"\xff")


def read(records: Any) -> list[tuple[int, Any, Any, Any]]:
    fetched = PartitionRecords(TP, records, [], 0, None, None, False, 0)
    return [(record.offset, record.key, record.value, list(record.headers)) for record in fetched]


@pytest.mark.parametrize("compression", [0, GZIP])
def test_what_can_be_read_is_read_as_ever(compression: int) -> None:
    data = batch(GOOD, 0, compression) + batch(GOOD, 3, compression)
    assert read(AnyNames(data)) == read(MemoryRecords(data))
    assert len(read(AnyNames(data))) == 6


@pytest.mark.parametrize("length", [1, 2, 70])
@pytest.mark.parametrize("place", range(4))
def test_nothing_is_lost_beside_a_name_that_is_no_utf_8(place: int, length: int) -> None:
    """Nor is anything else changed, the same bytes in a value among it."""
    bad: Written = [(b"Z", b"ZZ", [("before", b"Z"), (name_of(length), b"Z" * 3), ("", None), (name_of(length), None)])]
    records = GOOD[:place] + bad + GOOD[place:]
    data = batch(GOOD, 0, 0) + spoilt(records, 3) + batch(GOOD, 7, 0)
    with pytest.raises(UnicodeDecodeError):
        read(MemoryRecords(data))
    found = read(AnyNames(data))
    assert [offset for offset, *_ in found] == list(range(10))
    headers = [("before", b"\xff"), ("?" * length, b"\xff" * 3), ("", None), ("?" * length, None)]
    assert found[3 + place] == (3 + place, b"\xff", b"\xff\xff", headers)
    others = [record[1:] for record in found if record[0] != 3 + place]
    assert others == [record[1:] for record in read(MemoryRecords(batch(GOOD, 0, 0)))] * 3


def test_a_name_that_was_compressed() -> None:
    import gzip

    plain = spoilt([*GOOD, (b"k", b"v", [(name_of(3), b"")])], 0)
    records = gzip.compress(plain[61:])
    head = bytearray(plain[:61])
    head[8:12] = (49 + len(records)).to_bytes(4, "big")
    head[22] |= GZIP
    found = read(AnyNames(bytes(head) + records))
    assert found[-1] == (3, b"k", b"v", [("???", b"")])


def test_aborted_transactions_are_told_by_what_is_wrapped() -> None:
    wrapped: Any = AnyNames(batch(GOOD, 5, 0)).next_batch()
    assert (wrapped.base_offset, wrapped.next_offset, wrapped.is_control_batch) == (5, 8, False)
    assert next(wrapped).offset == 5
    assert SimpleNamespace(ended=AnyNames(b"").next_batch()).ended is None
