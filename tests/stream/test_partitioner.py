"""Placement equals what the producers do."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.errors import Misplaced, TopologyError
from xgr_stream.stream.partitioner import Placement, murmur2, partitioner


@given(st.binary(min_size=1, max_size=40), st.integers(1, 64))
def test_murmur2_places_like_aiokafka(key: bytes, partitions: int) -> None:
    place = partitioner("murmur2", partitions)
    assert place is not None
    everything = list(range(partitions))
    assert place(key) == DefaultPartitioner()(key, everything, everything)


@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536)],
)
def test_murmur2_gives_kafkas_own_test_values(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected & 0xFFFFFFFF


def test_crc32_places_like_librdkafka() -> None:
    place = partitioner("crc32", 16)
    assert place is not None
    assert [place(key) for key in (b"123456789", b"user-7")] == [0xCBF43926 % 16, place(b"user-7")]


def test_any_places_nowhere() -> None:
    assert partitioner("any", 16) is None
    placement = Placement("any")
    placement.set_partitions(4)
    placement.check("u", 3)
    assert placement.partition("u") is None


def test_a_misplaced_user_is_named_with_the_remedy() -> None:
    placement = Placement("murmur2")
    placement.set_partitions(4)
    expected = placement.partition("u")
    assert expected is not None
    placement.check("u", expected)
    with pytest.raises(Misplaced, match=f"partition must be {expected}, where murmur2 places this user among 4"):
        placement.check("u", (expected + 1) % 4)


def test_the_number_of_partitions_stays() -> None:
    placement = Placement("murmur2")
    placement.set_partitions(4)
    placement.set_partitions(4)
    with pytest.raises(TopologyError):
        placement.set_partitions(5)
