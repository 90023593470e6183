"""The header by which a copy in the events topic says which record it is a copy of (docs/protocol.md has its bytes)."""

from __future__ import annotations

from typing import Any

import msgpack

from xgr_stream.history import SourcePosition
from xgr_stream.stream.records import Headers

SOURCE_HEADER = "xgr-source"
MAX_BYTES = 512
"""A topic's name has 249 at most."""
_MAX_OFFSET = (1 << 63) - 1


def source_header(source: SourcePosition) -> tuple[str, bytes]:
    return SOURCE_HEADER, msgpack.packb(source)


def source_of(headers: Headers) -> SourcePosition | None:
    """None: the record is no copy, or says so in no way that can be read. It counts then: to refuse it would lose an
    event, to count it may count one twice."""
    for name, value in headers:
        if name == SOURCE_HEADER:
            try:
                return source_from(msgpack.unpackb(value if len(value) <= MAX_BYTES else b"", max_ext_len=0))
            except (ValueError, TypeError):
                return None
    return None


def source_from(fields: Any) -> SourcePosition:
    """Of a header or in the changelog. Raises `ValueError` or `TypeError`."""
    if type(fields) is not list:
        raise TypeError("a source must be an array")
    topic, partition, offset = fields[:3]
    if type(topic) is not str or type(partition) is not int or type(offset) is not int:
        raise TypeError("a source must be a topic's name, a partition and an offset")
    if not (0 <= partition <= _MAX_OFFSET and 0 <= offset <= _MAX_OFFSET):
        raise ValueError("a source's partition and offset must not be negative")
    return tuple.__new__(SourcePosition, (topic, partition, offset))
