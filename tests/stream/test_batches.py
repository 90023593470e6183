"""Batches with names of headers that are no UTF-8, and batches that hold too much: what can be read of them is, and
what is around them as it is."""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher
import pytest
from aiokafka import TopicPartition
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import encode_varint
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.config import MAX_BATCH_BYTES, TopicNames
from xgr_stream.errors import MalformedMessage, MessageTooLarge
from xgr_stream.stream import batches
from xgr_stream.stream.batches import (
    BESIDE_VALUE_BYTES,
    FETCH_BYTES,
    Batches,
    Limits,
    bound_batches,
    bound_others,
    bound_topics,
    read_any_batch,
)
from xgr_stream.stream.protocol import dead_letter_message
from xgr_stream.stream.records import DEAD_LETTER_BYTES, MAX_HEADERS, Record, Unread

TP = TopicPartition("requests", 0)
MIB = 1 << 20
PLAIN, GZIP, SNAPPY, LZ4, ZSTD = CODECS = range(5)
ENCODE = {PLAIN: bytes, GZIP: gzip_encode, SNAPPY: snappy_encode, LZ4: lz4_encode, ZSTD: zstd_encode}
HEAD = 61
ROOT = Path(__file__).parents[2]
Written = list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]]
GOOD: Written = [(b"a", b"1", []), (None, b"2", [("trace", b"00"), ("\N{SNOWMAN}", None)]), (b"c", None, [("x", b"")])]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
RECORDS = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=5),
        st.none() | st.binary(max_size=200),
        st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=5)), max_size=2),
    ),
    min_size=1,
    max_size=5,
)


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


def with_records(data: bytes, codec: int, records: bytes) -> bytes:
    """The batch with others in place of its own."""
    head = bytearray(data[:HEAD])
    head[8:12] = (HEAD - 12 + len(records)).to_bytes(4, "big")
    head[22] = codec
    return bytes(head) + records


def zigzag(number: int) -> bytes:
    found = bytearray()
    encode_varint(number, found.append)
    return bytes(found)


def record(
    key: bytes,
    value: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    attributes: int = 0,
    offset: int = 0,
    timestamp: int = 0,
) -> bytes:
    def sized(data: bytes) -> bytes:
        return zigzag(len(data)) + data

    fields = b"".join(sized(part) for header in headers for part in header)
    content = bytes([attributes]) + zigzag(timestamp) + zigzag(offset) + sized(key) + sized(value)
    return sized(content + zigzag(len(headers)) + fields)


def of(records: Sequence[bytes]) -> bytes:
    """A batch of these, from offset 0 and time 1,000 on."""
    data = bytearray(with_records(batch(GOOD, 0, PLAIN), PLAIN, b"".join(records)))
    data[23:27], data[57:61] = (len(records) - 1).to_bytes(4, "big"), len(records).to_bytes(4, "big")
    data[27:35] = data[35:43] = (1_000).to_bytes(8, "big")
    return bytes(data)


def records_of(batches: Any) -> list[Any]:
    found = []
    while batches.has_next():
        found += list(batches.next_batch())
    return found


def read(records: Any) -> list[tuple[int, Any, Any, Any]]:
    fetched = PartitionRecords(TP, records, [], 0, None, None, False, 0)
    return [(record.offset, record.key, record.value, list(record.headers)) for record in fetched]


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


# Bounds


@pytest.mark.parametrize("codec", CODECS)
@given(records=RECORDS)
def test_what_is_within_the_bound_is_read_as_ever(codec: int, records: Written) -> None:
    data = batch(records, 7, codec) + batch(GOOD, 7 + len(records), codec)
    assert read(Batches(data, Limits(MIB))) == read(MemoryRecords(data))


@pytest.mark.parametrize("codec", [code for code in CODECS if code])
def test_a_batch_past_the_bound_is_one_record_that_says_so(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgr_stream.stream.decompress.MAX_BATCH_BYTES", 100_000)
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 100_000)
    large: Written = [(b"k", bytes(60_000), []), (b"k", bytes(60_000), [])]
    data = batch(GOOD, 0, codec) + batch(large, 3, codec) + batch(GOOD, 5, codec)
    found = read(Batches(data, Limits(MIB)))
    assert [offset for offset, *_ in found] == [0, 1, 2, 4, 5, 6, 7]
    _, key, value, headers = found[3]
    assert (key, type(value), headers, value, value.size) == (None, Unread, [], b"", None)
    assert isinstance(value.error, MessageTooLarge)
    assert str(value.error).startswith("records 3 to 4, of a batch of ")
    assert "bytes, can't be read: a batch must decompress to at most 100000 bytes, and it holds more" in str(
        value.error
    )
    assert read(Batches(data)) == read(MemoryRecords(data))  # a topic that is not ours


@pytest.mark.parametrize("codec", [code for code in CODECS if code])
@given(data=st.data())
def test_records_that_are_none_are_one_record_too(codec: int, data: st.DataObject) -> None:
    """A broker that looks into what it is given takes none; others do."""
    sound = batch(GOOD, 4, codec)
    encode = ENCODE[codec]
    spoilt_records = batch([*GOOD[:2], (b"k", b"v", [(name_of(3), b"")])], 4, PLAIN)[HEAD:-2].replace(b"Z", b"\xff")
    records = data.draw(
        st.binary(max_size=60)
        | st.sampled_from([sound[HEAD:-1], b"\x82SNAPPY\x00" + bytes(8), encode(spoilt_records)])
        | st.binary(max_size=60).map(encode)
    )
    found = read(Batches(with_records(sound, codec, records), Limits(MIB)))
    assert found[-1][0] == 6
    assert isinstance(found[-1][2], Unread)
    large = codec == SNAPPY and "it holds more" in str(found[-1][2].error)  # by what it says of itself
    assert isinstance(found[-1][2].error, MessageTooLarge if large else MalformedMessage)


@given(records=RECORDS, cuts=st.lists(st.integers(0, 400), max_size=2))
def test_gzip_of_several_members(records: Written, cuts: list[int]) -> None:
    """With zeros behind it, as tape has them."""
    plain = batch(records, 0, PLAIN)
    edges = [HEAD, *sorted(min(HEAD + cut, len(plain)) for cut in cuts), len(plain)]
    members = b"".join(gzip.compress(plain[begin:end]) for begin, end in pairwise(edges))
    assert read(Batches(with_records(plain, GZIP, members + bytes(3)), Limits(MIB))) == read(MemoryRecords(plain))


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
def test_a_record_past_the_bound_is_told_of_and_those_beside_it_are_read(codec: int, data: st.DataObject) -> None:
    """Beside names that are no UTF-8, too."""
    large: Written = [
        (b"key", b"v" * 700, [("x", b"1")]),
        (None, b"v", [("", None)] * 6),
        (b"k" * 700, None, []),
        (b"k", b"", [("☃" * 300, None)]),
    ]
    kinds = data.draw(st.lists(st.sampled_from(["good", "bad name", *range(4)]), min_size=1, max_size=7))
    named: Written = [(b"n", b"a name", [(name_of(2), b"")])]
    chosen = [{"good": GOOD[1], "bad name": named[0]}.get(kind) or large[kind] for kind in kinds]
    plain = batch(chosen, 5, PLAIN).replace(b"Z", b"\xff")
    packed = with_records(plain, codec, ENCODE[codec](plain[HEAD:]))
    found = read(Batches(packed, Limits(600, 5)))
    assert [offset for offset, *_ in found] == list(range(5, 5 + len(kinds)))
    for kind, wanted, (_, key, value, headers) in zip(kinds, chosen, found, strict=True):
        if kind == "bad name":
            assert (key, value, headers) == (b"n", b"a name", [("??", b"")])
        elif kind == "good":
            assert (key, value, headers) == wanted
        else:
            assert isinstance(value, Unread)
            assert isinstance(value.error, MessageTooLarge)
            size = None if wanted[1] is None else len(wanted[1])
            assert (key, value, value.size, headers) == (wanted[0], wanted[1] or b"", size, [])


@pytest.mark.parametrize("key", [None, b"", b"k", bytes(2 * DEAD_LETTER_BYTES)])
@pytest.mark.parametrize("value", [None, b"", bytes(3 * MIB)])
def test_a_letter_tells_how_long_key_and_value_were(key: bytes | None, value: bytes | None) -> None:
    large: Written = [(key, value, [("", None)] * (MAX_HEADERS + 1))]
    [(offset, kept_key, kept_value, _)] = read(Batches(batch(large, 9, ZSTD), Limits(MIB)))
    letter = dead_letter_message(Record(TP.topic, 0, offset, kept_key, kept_value, 7), kept_value.error)
    assert (letter["reason"], letter["offset"]) == ("too_large", 9)
    for name, data in (("key", key), ("value", value)):
        cut = None if data is None else data[:DEAD_LETTER_BYTES]
        assert (letter[name], letter[f"{name}_bytes"]) == (cut, None if data is None else len(data))
        assert type(letter[name]) in (bytes, type(None))


@pytest.mark.parametrize("more", [0, 1])
def test_limits_are_exact(more: int) -> None:
    value = b"v" * 300
    content = record(b"k", value, [(b"n", b"")] * 3)
    size = len(content) - 2  # without its own length
    for limits in (Limits(size - more, 3), Limits(size, 3 - more)):
        [(_, _, read_value, _)] = read(Batches(of([content]), limits))
        assert (read_value, isinstance(read_value, Unread)) == (value, bool(more))


@pytest.mark.parametrize("appended", [False, True])
def test_what_is_not_read_has_the_time_that_it_would_have(appended: bool) -> None:
    """Its own, or the batch's. And of a compacted batch, whose first and last records are gone, the last offset."""
    head = bytearray(of([record(b"a", b"1", offset=3, timestamp=5), record(b"b", b"2" * 99, offset=5, timestamp=9)]))
    head[22] |= 8 * appended
    head[23:27] = (7).to_bytes(4, "big")
    head[35:43] = (2_000).to_bytes(8, "big")
    times, offsets = (2_000, 2_000) if appended else (1_005, 1_009), (3, 5)
    whole = [
        (one.offset, one.timestamp, one.timestamp_type) for one in records_of(Batches(bytes(head), Limits(99_999)))
    ]
    assert whole == [(offset, at, appended) for offset, at in zip(offsets, times, strict=True)]
    assert whole == [(one.offset, one.timestamp, one.timestamp_type) for one in records_of(MemoryRecords(bytes(head)))]
    cut = records_of(Batches(bytes(head), Limits(50)))
    assert [(one.offset, one.timestamp) for one in cut] == list(zip(offsets, times, strict=True))
    head[-1] = 1  # the last field now is a header that is not there
    spoilt_one = records_of(Batches(bytes(head), Limits(99_999)))
    assert [(one.offset, one.timestamp) for one in spoilt_one] == [(3, times[0]), (7, 2_000)]
    assert str(spoilt_one[1].value.error).startswith("records 4 to 7, of a batch of ")


def test_sound_records_before_one_that_is_none_are_read() -> None:
    sound = [record(b"k", b"%d" % number, offset=number) for number in range(400)]
    spoilt_one = record(b"k", b"v", offset=400)
    found = read(Batches(of([*sound, b"\x40" + spoilt_one[1:]]), Limits(MIB)))
    assert [value for *_, value, _ in found[:400]] == [b"%d" % number for number in range(400)]
    assert [(offset, type(value)) for offset, _, value, _ in found[400:]] == [(400, Unread)]


LAST, LARGEST = zigzag(-(2**31)), zigzag(2**31 - 1)


@pytest.mark.parametrize(
    "content",
    [
        record(b"\x00\x00", b"\x02\xff\x00", attributes=0x80),
        record(b"k", b"v", [(b"\xff", b"")]) + LARGEST + bytes(9),
        record(b"k", b"v", [(b"\xff", b"")]) + LAST + bytes(9),
        record(b"k", b"v", [(b"\xff", b"")]) + zigzag(-1),
        record(b"k", b"v", [(b"\xff", b"")]) + b"\xff" * 30,
        b"\x04" + record(b"k", b"v", [(b"n", bytes(50_000))] * 99)[3:],
        b"\xff" * 9,
        b"",
    ],
)
@pytest.mark.parametrize("codec", [PLAIN, ZSTD])
@pytest.mark.timeout(20)
def test_what_lies_about_itself_ends_nobody(content: bytes, codec: int) -> None:
    """Records that aiokafka's own readers take differently, or read on behind the end of: such ended a process, or went
    on for ever."""
    data = with_records(of([b""] * 3), codec, ENCODE[codec](content))
    found = read(Batches(data, Limits(MIB)))
    assert len(found) <= 2
    assert found[-1][0] == 2


SECOND = record(b"k", b"v", offset=1)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (SECOND[:-1] + b"\x01", "has -1 headers"),
        (b"\x12" + SECOND[1:] + b"\x00", "a record of 9 bytes has fields of 8"),
        (SECOND[:6] + b"\x40" + SECOND[7:], "a field of 32 bytes has"),
        (record(b"k", b"v", [(b"n", b"")], offset=1)[:-1] + b"\x02", "a field of 1 bytes has 0"),
        (record(b"k", b"v", [(b"", b"")], offset=1)[:-2] + b"\x01\x00", "a header has no name"),
        (SECOND + record(b"k", b"v", offset=2)[:-1], "a record of"),
    ],
)
def test_what_is_wrong_with_a_record_is_told(content: bytes, text: str) -> None:
    """Behind a sound one, which is read."""
    data = with_records(of([b""] * 3), PLAIN, record(b"a", b"sound") + content)
    found = read(Batches(data, Limits(MIB)))
    assert found[0] == (0, b"a", b"sound", [])
    assert found[-1][0] == 2
    assert text in str(found[-1][2].error)


@pytest.mark.parametrize("deltas", [(0, 2**31 - 1, 2), (0, 1, 1), (0, 0, 1), (1, 2**62, 2), (-1, 1, 2), (0, 3, 2)])
def test_an_offset_out_of_its_order_or_its_batch_is_told_of(deltas: tuple[int, ...]) -> None:
    """What is behind it would pass for what was read before, and be left out: the tracker of offsets goes by them."""
    data = of([record(b"k", b"v", offset=delta) for delta in deltas])
    sound = next(n for n in range(3) if not (deltas[n - 1] if n else -1) < deltas[n] < 3)
    found = read(Batches(data, Limits(MIB)))
    assert [offset for offset, *_ in found] == [*deltas[:sound], 2]
    assert isinstance(found[-1][2].error, MalformedMessage)


@pytest.mark.parametrize("count", [0, 1, -1])
def test_records_that_a_batch_does_not_count_are_told_of(count: int) -> None:
    data = bytearray(batch(GOOD, 0, PLAIN))
    data[57:61] = count.to_bytes(4, "big", signed=True)
    found = read(Batches(bytes(data), Limits(MIB)))
    assert [(offset, isinstance(value, Unread)) for offset, _, value, _ in found[-1:]] == [(2, True)]
    assert len(found) == 1 + max(count, 0)


def test_a_batch_that_ends_before_it_begins_is_come_past() -> None:
    for records in ([record(b"k", b"v")], [b""]):
        data = bytearray(of(records))
        data[:8], data[23:27] = (10).to_bytes(8, "big"), (-5).to_bytes(4, "big", signed=True)
        fetched = PartitionRecords(TP, Batches(bytes(data), Limits()), [], 0, None, None, False, 0)
        assert [one.offset for one in fetched] == [10]
        assert fetched.next_fetch_offset == 11


def test_a_time_that_no_message_can_hold_is_unknown() -> None:
    data = bytearray(of([record(b"k", b"v", timestamp=-(2**62)), record(b"k", b"v", offset=1)]))
    data[27:35] = (-(2**63)).to_bytes(8, "big", signed=True)
    assert [one.timestamp for one in records_of(Batches(bytes(data), Limits()))] == [-1, -(2**63)]


@pytest.mark.parametrize("behind", [record(b"k", b"v", offset=1), b"\0"])
@pytest.mark.parametrize("count", [3, 4])
def test_what_is_behind_the_last_offset_is_logged(behind: bytes, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """There is no offset that a letter of it could have: the next one is the next batch's."""
    data = bytearray(with_records(batch(GOOD, 0, PLAIN), PLAIN, batch(GOOD, 0, PLAIN)[HEAD:] + behind))
    data[57:61] = count.to_bytes(4, "big")
    assert read(Batches(bytes(data), Limits(MIB))) == read(MemoryRecords(batch(GOOD, 0, PLAIN)))
    assert "what is behind record 2 in its batch is no record" in caplog.text


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


@pytest.mark.parametrize("codec", [code for code in CODECS if code])
@pytest.mark.parametrize("more", [0, 1])
def test_the_bound_of_a_batch_is_exact(codec: int, more: int) -> None:
    value = bytes(MAX_BATCH_BYTES + more - len(record(b"k", bytes(MAX_BATCH_BYTES - 100))) + MAX_BATCH_BYTES - 100)
    content = record(b"k", value)
    assert len(content) == MAX_BATCH_BYTES + more
    [(_, _, found, _)] = read(Batches(with_records(of([b""]), codec, ENCODE[codec](content)), Limits()))
    assert isinstance(found, Unread) == bool(more)


@given(data=st.data())
def test_spoilt_bytes_are_read_or_told_of(data: st.DataObject) -> None:
    sound = bytearray(batch(data.draw(RECORDS), 4, PLAIN))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(HEAD, len(sound) - 1))] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 254, 255]))
    found = records_of(Batches(bytes(sound), Limits(150, 3)))
    assert all(one.value is None or isinstance(one.value, bytes) for one in found)


def test_a_fetch_is_read_a_part_at_a_time() -> None:
    """What is behind it is fetched again, from where it begins."""
    count, size = 60, FETCH_BYTES // 4
    data = b"".join(batch([(b"k", bytes(size), [])], number, ZSTD) for number in range(count))
    fetched = PartitionRecords(TP, Batches(data, Limits()), [], 0, None, None, False, 0)
    assert [one.offset for one in fetched] == [0, 1, 2, 3]
    assert fetched.next_fetch_offset == 4
    assert len(read(Batches(data))) == count


@pytest.mark.parametrize(("count", "entry"), [(33_000_000, b"\x00\x01"), (22_000_000, b"\x02\xff\x01")])
def test_millions_of_headers_take_no_time(count: int, entry: bytes) -> None:
    """In six kilobytes; with empty names, and with names that are no UTF-8."""
    body = bytearray()
    encode_varint(count, body.append)
    content = b"\x00\x00\x00\x02k\x02v" + bytes(body) + entry * count
    length = bytearray()
    encode_varint(len(content), length.append)
    head = batch([(b"k", b"v", [])], 0, PLAIN)
    data = with_records(head, ZSTD, zstd_encode(bytes(length) + content))
    begun = time.process_time()
    [(offset, key, value, _)] = read(Batches(data, Limits(MIB)))
    assert time.process_time() - begun < 2
    assert (offset, key, value, value.size, type(value.error)) == (0, b"k", b"v", 1, MessageTooLarge)


@pytest.mark.parametrize("codec", [GZIP, ZSTD])
def test_little_memory_is_taken_for_a_gigabyte_of_zeros(codec: int, tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(with_records(batch(GOOD, 0, PLAIN), codec, gigabyte(codec)))
    found = subprocess.run([sys.executable, "-c", TAKEN, path], cwd=ROOT, capture_output=True, text=True, check=True)
    kind, taken = found.stdout.split()
    assert (kind, int(taken) < 3 * MAX_BATCH_BYTES) == ("Unread", True), taken


def gigabyte(codec: int) -> bytes:
    """Of zeros."""
    if codec == GZIP:
        packer = zlib.compressobj(wbits=31)
        return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(1024)), packer.flush()])
    block = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"  # one byte, as often as a block may be long
    return b"\x28\xb5\x2f\xfd\x00\x38" + block * 8192 + b"\x01\x00\x00"


TAKEN = """
import sys
from pathlib import Path
from xgr_stream.stream.batches import Batches, Limits
def peak():  # not getrusage: a process begins with the one of whoever started it
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
batch, before = Batches(Path(sys.argv[1]).read_bytes(), Limits(1 << 20)).next_batch(), peak()
print(*(type(record.value).__name__ for record in batch), peak() - before)
"""


def test_topics_are_bounded_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_limits", {})
    names = TopicNames()
    bound_topics(names, 5_000)
    bound_others(["views"])
    read_any_batch()
    fetcher: Any = aiokafka.consumer.fetcher

    def limits(topic: str) -> Limits | None:
        records = fetcher.MemoryRecords(b"")
        fetcher.PartitionRecords(TopicPartition(topic, 0), records, [], 0, None, None, False, 0)
        return records.limits

    written = [Limits(5_000 + BESIDE_VALUE_BYTES, MAX_HEADERS)] * 3
    assert [limits(topic) for topic in (names.events, names.requests, names.catalog)] == written
    assert [limits(topic) for topic in (names.responses, names.changelog)] == [Limits(MAX_BATCH_BYTES, MAX_HEADERS)] * 2
    assert limits("views") == Limits(1 << 62, 1 << 62)
    assert limits("others") is None


def test_who_names_wider_limits_for_a_topic_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers of one process share them: what another's limits leave out, one's own must not."""
    monkeypatch.setattr(batches, "_limits", {})
    for limits in (Limits(10, 3), Limits(20, 2), Limits(5, 1)):
        bound_batches(["shared"], limits)
    assert batches._limits == {"shared": Limits(20, 3)}


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


@pytest.mark.parametrize("codec", [code for code in CODECS if code])
def test_batches_past_the_bound_are_a_part_of_a_fetch_each(codec: int) -> None:
    """Each takes as long as one that is not: 500 of zstd's are a megabyte, and took 9 s in one go."""
    data = b"".join(
        with_records(batch(GOOD, n, PLAIN), codec, ENCODE[codec](bytes(MAX_BATCH_BYTES + 1))) for n in (0, 3)
    )
    fetched = PartitionRecords(TP, Batches(data, Limits()), [], 0, None, None, False, 0)
    assert [one.offset for one in fetched] == [2]
    assert fetched.next_fetch_offset == 3
