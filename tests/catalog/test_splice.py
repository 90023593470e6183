"""What is spliced equals plain lists, wherever blocks begin and end."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from xgr_stream.catalog import splice
from xgr_stream.catalog.splice import NO_PLACES, bisect_each, moved, places_behind, spliced


@pytest.mark.parametrize("block", [1, 2, 3, 5, 100])
def test_an_array_is_spliced_as_a_list_is(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(splice, "BLOCK", block)
    monkeypatch.setattr(splice, "PIECE", 2 * block)
    random = Random(block)
    for _ in range(300):
        size = random.randrange(12)
        old = [random.randrange(100) for _ in range(size)]
        gone = sorted(random.sample(range(size), random.randrange(size + 1) // random.choice((1, 4))))
        at, up, down = (sorted(random.choices(range(size + 1), k=random.choice((0, 0, 1, 1, 9)))) for _ in range(3))
        values = [-1 - number for number in range(len(at))]
        wanted: list[int] = []
        for place in range(size + 1):
            wanted += [value for value, own in zip(values, at, strict=True) if own == place]
            if place < size and place not in gone:
                more = sum(own <= place for own in up) - sum(own <= place for own in down)
                wanted.append(old[place] + more)
        array = np.array(old, np.int32)
        places = [np.array(own, np.int64) for own in (gone, at, values, up, down)]
        new = spliced(array, *places)
        assert new.tolist() == wanted
        assert new.dtype == np.int32
        assert array.tolist() == old
        assert new[places_behind(places[0], places[1])].tolist() == values
        stay = np.array([place for place in range(size) if place not in gone], np.int64)
        numbered = spliced(np.arange(size), places[0], places[1], places[2])
        assert numbered[moved(stay, places[0], places[1])].tolist() == stay.tolist()


def test_an_array_that_nothing_changes_in_is_not_copied() -> None:
    old = np.arange(3)
    assert spliced(old, NO_PLACES, NO_PLACES, NO_PLACES) is old


def test_each_range_is_searched_by_itself() -> None:
    values = np.array([1, 3, 5, 0, 2, 2, 2], np.int32)
    low, high, wanted, found = zip(
        *((0, 3, 0, 0), (0, 3, 3, 1), (0, 3, 4, 2), (0, 3, 9, 3), (3, 7, 2, 4), (3, 3, 0, 3), (7, 7, 5, 7)), strict=True
    )
    assert bisect_each(values, np.array(low), np.array(high), np.array(wanted)).tolist() == list(found)
