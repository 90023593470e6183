"""The header by which a copy names what it is a copy of."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.history import SourcePosition
from xgr_stream.stream.source_header import SOURCE_HEADER, source_header, source_of

SOURCE = SourcePosition("page-views", 3, 1041)
TRACE = ("traceparent", b"00-0-0-01")


def test_it_is_found_among_others() -> None:
    assert source_of((TRACE, source_header(SOURCE), TRACE)) == SOURCE
    assert source_of((TRACE,)) is None


def test_elements_that_a_later_release_adds_are_ignored() -> None:
    assert source_of(((SOURCE_HEADER, msgpack.packb([*SOURCE, "new"])),)) == SOURCE


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\x93",
        msgpack.packb("page-views"),
        msgpack.packb({"topic": "page-views"}),
        msgpack.packb(["page-views", 3]),
        msgpack.packb([3, "page-views", 1041]),
        msgpack.packb(["page-views", 3, True]),
        msgpack.packb(["page-views", 3, -1]),
        msgpack.packb(["page-views", 3, 1 << 63]),
        msgpack.packb(["p" * 1_000, 3, 1041]),
        msgpack.packb([*SOURCE]) + b"\x00",
    ],
)
def test_what_can_not_be_read_is_no_source(value: bytes | None) -> None:
    assert source_of(((SOURCE_HEADER, value),)) is None  # type: ignore[arg-type]  # Kafka has null headers


@given(st.binary(max_size=40))
def test_whatever_the_bytes_nothing_is_raised(value: bytes) -> None:
    source_of(((SOURCE_HEADER, value),))
