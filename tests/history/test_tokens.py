"""Numbers of strings by their bytes: as a dictionary has them, whatever their lengths and however many."""

from __future__ import annotations

import random

import msgpack
import numpy as np
import pytest

from xgr_stream.history import tokens
from xgr_stream.history.tokens import PADDING, TokenNumbers


class Numbering:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}
        self.asked = self.calls = 0

    def add(self, tokens: list[bytes]) -> list[int]:
        self.asked += len(tokens)
        self.calls += 1
        return [self.known.setdefault(token, len(self.known)) for token in tokens]


def look_up(numbers: TokenNumbers, found: list[bytes]) -> list[int]:
    lengths = np.array(list(map(len, found)), dtype=np.int64)
    starts = 1 + np.cumsum(lengths) - lengths
    return numbers.numbers(b"\xff" + b"".join(found) + PADDING, starts, lengths).tolist()


def names(rng: random.Random, count: int, longest: int) -> list[bytes]:
    return [msgpack.packb("".join(rng.choices("ab", k=rng.randint(0, longest)))) for _ in range(count)]


@pytest.mark.parametrize("longest", [3, 7, 8, 15, 31, 60])
def test_numbers_are_those_of_a_dictionary(longest: int) -> None:
    rng = random.Random(longest)
    numbering = Numbering()
    numbers = TokenNumbers(numbering.add)
    for _ in range(20):
        found = names(rng, rng.choice([1, 50, 3_000]), longest)
        assert look_up(numbers, found) == [numbering.known[name] for name in found]
    distinct = len(numbering.known)
    assert len(set(numbering.known.values())) == distinct


def test_a_name_that_was_met_is_not_asked_for_again() -> None:
    numbering = Numbering()
    numbers = TokenNumbers(numbering.add)
    found = [msgpack.packb(f"item-{i}") for i in range(30_000)]
    for _ in range(2):  # the table grows; what it has no room for at once is asked for again
        look_up(numbers, found)
    asked = numbering.asked
    assert look_up(numbers, found[::-1]) == [numbering.known[name] for name in found[::-1]]
    assert numbering.asked == asked < 2 * len(found)


def test_names_met_for_the_first_time_are_numbered_many_at_a_time() -> None:
    numbering = Numbering()
    numbers = TokenNumbers(numbering.add)
    found = [msgpack.packb(f"user-{i}") for i in range(5_000)]
    assert look_up(numbers, found) == [numbering.known[name] for name in found]
    assert numbering.asked == len(found)
    assert numbering.calls < 50  # as often as the longest way to a free slot is long


def test_what_cannot_be_numbered_is_asked_for_again() -> None:
    numbering = Numbering()

    def add(tokens: list[bytes]) -> list[int]:
        if b"\xa1?" in tokens:
            raise ValueError("not this one")
        return numbering.add(tokens)

    numbers = TokenNumbers(add)
    found = [msgpack.packb(str(i)) for i in range(100)]
    for _ in range(2):
        with pytest.raises(ValueError, match="not this one"):
            look_up(numbers, [*found, b"\xa1?"])
    assert look_up(numbers, found) == [numbering.known[name] for name in found]


def test_what_finds_no_room_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "FIRST_SLOTS", 16)
    monkeypatch.setattr(tokens, "MAX_SLOTS", 64)
    numbering = Numbering()
    numbers = TokenNumbers(numbering.add)
    found = [msgpack.packb(f"item-{i}") for i in range(500)]
    for _ in range(3):
        rng = random.Random(0)
        mixed = rng.choices(found, k=2_000)
        assert look_up(numbers, mixed) == [numbering.known[name] for name in mixed]


def test_a_longer_name_does_not_hide_the_others() -> None:
    """Rows become wider for it."""
    numbering = Numbering()
    numbers = TokenNumbers(numbering.add)
    short, long = [msgpack.packb(str(i)) for i in range(100)], msgpack.packb("x" * 30)
    first = look_up(numbers, short)
    assert look_up(numbers, [*short, long, *short]) == [*first, 100, *first]
    assert look_up(numbers, short) == first
    assert look_up(numbers, [long]) == [100]
    assert numbering.asked == 101


def test_a_number_of_minus_one_is_kept() -> None:
    asked: list[bytes] = []

    def add(tokens: list[bytes]) -> list[int]:
        asked.extend(tokens)
        return [-1] * len(tokens)

    numbers = TokenNumbers(add)
    assert look_up(numbers, [b"\xc0"] * 5) == [-1] * 5
    assert len(asked) == 1


def test_nothing_has_no_numbers() -> None:
    assert look_up(TokenNumbers(Numbering().add), []) == []
