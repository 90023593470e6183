"""What is past the bounds of a batch, a record or a topic: told of by a record in its place, and what is around it is
read."""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiokafka.consumer.fetcher
import pytest
from aiokafka import TopicPartition
from aiokafka.codec import zstd_encode
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import encode_varint
from hypothesis import given
from hypothesis import strategies as st

from tests.stream.record_batches import (
    CODECS,
    ENCODE,
    GOOD,
    GZIP,
    HEAD,
    MIB,
    PLAIN,
    RECORDS,
    TP,
    ZSTD,
    Written,
    batch,
    name_of,
    of,
    read,
    record,
    records_of,
    with_records,
)
from xgr_stream.config import MAX_BATCH_BYTES, TopicNames
from xgr_stream.errors import MessageTooLarge
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

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("codec", [code for code in CODECS if code])
@pytest.mark.parametrize("more", [0, 1])
def test_the_bound_of_a_batch_is_exact(codec: int, more: int) -> None:
    value = bytes(MAX_BATCH_BYTES + more - len(record(b"k", bytes(MAX_BATCH_BYTES - 100))) + MAX_BATCH_BYTES - 100)
    content = record(b"k", value)
    assert len(content) == MAX_BATCH_BYTES + more
    [(_, _, found, _)] = read(Batches(with_records(of([b""]), codec, ENCODE[codec](content)), Limits()))
    assert isinstance(found, Unread) == bool(more)


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
        packer = zlib.compressobj(level=1, wbits=31)
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


@pytest.mark.parametrize("codec", [code for code in CODECS if code])
def test_batches_past_the_bound_are_a_part_of_a_fetch_each(codec: int) -> None:
    """Each takes as long as one that is not: 500 of zstd's are a megabyte, and took 9 s in one go."""
    data = b"".join(
        with_records(batch(GOOD, n, PLAIN), codec, ENCODE[codec](bytes(MAX_BATCH_BYTES + 1))) for n in (0, 3)
    )
    fetched = PartitionRecords(TP, Batches(data, Limits()), [], 0, None, None, False, 0)
    assert [one.offset for one in fetched] == [2]
    assert fetched.next_fetch_offset == 3
