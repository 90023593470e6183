"""Batches with names of headers that are no UTF-8, and batches that hold too much: what can be read of them is, and
what is around them as it is."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher
import pytest
from aiokafka import TopicPartition
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.config import MAX_BATCH_BYTES
from xgr_stream.stream.batches import Batches, _PartitionRecords, bound_batches, read_any_batch
from xgr_stream.stream.records import Unread

TP = TopicPartition("requests", 0)
PLAIN, GZIP, SNAPPY, LZ4, ZSTD = CODECS = range(5)
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


def test_a_name_that_was_compressed() -> None:
    plain = spoilt([*GOOD, (b"k", b"v", [(name_of(3), b"")])], 0)
    data = with_records(plain, GZIP, gzip.compress(plain[HEAD:]))
    found = read(Batches(data))
    assert found == read(Batches(data, bounded=True))
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
    assert read(Batches(data, bounded=True)) == read(MemoryRecords(data))


@pytest.mark.parametrize("codec", [code for code in CODECS if code])
def test_a_batch_past_the_bound_is_one_record_that_says_so(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgr_stream.stream.batches.MAX_BATCH_BYTES", 100_000)
    large: Written = [(b"k", bytes(60_000), []), (b"k", bytes(60_000), [])]
    data = batch(GOOD, 0, codec) + batch(large, 3, codec) + batch(GOOD, 5, codec)
    found = read(Batches(data, bounded=True))
    assert [offset for offset, *_ in found] == [0, 1, 2, 4, 5, 6, 7]
    _, key, value, headers = found[3]
    assert (key, type(value), headers) == (None, Unread, [])
    assert value.startswith(b"records 3 to 4, of a batch of ")
    assert b"bytes, can't be read: they must decompress to at most 100000 bytes, and do not (" in value
    assert read(Batches(data)) == read(MemoryRecords(data))  # a topic that is not ours


@pytest.mark.parametrize("codec", [code for code in CODECS if code])
@given(data=st.data())
def test_records_that_are_none_are_one_record_too(codec: int, data: st.DataObject) -> None:
    """A broker that looks into what it is given takes none; others do."""
    sound = batch(GOOD, 4, codec)
    encode = {GZIP: gzip_encode, SNAPPY: snappy_encode, LZ4: lz4_encode, ZSTD: zstd_encode}[codec]
    spoilt_records = batch([*GOOD[:2], (b"k", b"v", [(name_of(3), b"")])], 4, PLAIN)[HEAD:-2].replace(b"Z", b"\xff")
    records = data.draw(
        st.binary(max_size=60)
        | st.sampled_from([sound[HEAD:-1], b"\x82SNAPPY\x00" + bytes(8), encode(spoilt_records)])
        | st.binary(max_size=60).map(encode)
    )
    found = read(Batches(with_records(sound, codec, records), bounded=True))
    assert found[-1][0] == 6
    assert isinstance(found[-1][2], Unread)


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
import resource, sys
from pathlib import Path
from xgr_stream.stream.batches import Batches
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
batch, before = Batches(Path(sys.argv[1]).read_bytes(), bounded=True).next_batch(), peak()
print(*(type(record.value).__name__ for record in batch), peak() - before)
"""


def test_topics_are_bounded_by_their_names() -> None:
    bound_batches([TP.topic])
    fetcher: Any = aiokafka.consumer.fetcher
    for topic, bounded in ((TP.topic, True), ("others", False)):
        records = Batches(b"")
        _PartitionRecords(TopicPartition(topic, 0), records, [], 0, None, None, False, 0)
        assert records.bounded == bounded
    read_any_batch()
    assert (fetcher.MemoryRecords, fetcher.PartitionRecords) == (Batches, _PartitionRecords)
