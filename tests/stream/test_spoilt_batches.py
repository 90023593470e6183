"""Batches whose records are none, or lie about themselves: told of by a record in their place, and those before it are
read."""

from __future__ import annotations

import pytest
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from tests.stream.record_batches import (
    CODECS,
    ENCODE,
    GOOD,
    HEAD,
    MIB,
    PLAIN,
    RECORDS,
    SNAPPY,
    TP,
    ZSTD,
    batch,
    name_of,
    of,
    read,
    record,
    records_of,
    with_records,
    zigzag,
)
from xgr_stream.errors import MalformedMessage, MessageTooLarge
from xgr_stream.stream.batches import Batches, Limits
from xgr_stream.stream.records import Unread


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


@given(data=st.data())
def test_spoilt_bytes_are_read_or_told_of(data: st.DataObject) -> None:
    sound = bytearray(batch(data.draw(RECORDS), 4, PLAIN))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(HEAD, len(sound) - 1))] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 254, 255]))
    found = records_of(Batches(bytes(sound), Limits(150, 3)))
    assert all(one.value is None or isinstance(one.value, bytes) for one in found)
