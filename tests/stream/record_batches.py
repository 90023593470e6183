"""Batches of records as brokers and careless clients write them, and what is read of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import encode_varint
from hypothesis import strategies as st

TP = TopicPartition("requests", 0)
MIB = 1 << 20
PLAIN, GZIP, SNAPPY, LZ4, ZSTD = CODECS = range(5)
ENCODE = {PLAIN: bytes, GZIP: gzip_encode, SNAPPY: snappy_encode, LZ4: lz4_encode, ZSTD: zstd_encode}
HEAD = 61
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
