import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.cache.extents import Extents, behind, joined, num_pages
from xgr_stream.errors import EngineError, OutOfMemory


def pages_of(runs):
    return [page for first, stop in runs for page in range(first, stop)]


def test_one_run_is_given_where_one_is_long_enough_and_the_shortest_of_those():
    extents = Extents("pages", 20)
    held = [extents.allocate(count) for count in (4, 3, 6, 3)]
    extents.release(held[0])
    extents.release(held[2])
    assert extents.allocate(4) == [(0, 4)]
    assert extents.allocate(5) == [(7, 12)]


def test_several_runs_are_given_where_none_is_long_enough():
    extents = Extents("pages", 10)
    held = [extents.allocate(2) for _ in range(5)]
    for runs in held[::2]:
        extents.release(runs)
    runs = extents.allocate(5)
    assert len(runs) == 3
    assert set(pages_of(runs)) < {0, 1, 4, 5, 8, 9}
    with pytest.raises(OutOfMemory, match="2 pages asked for, but only 1 of 10 are free"):
        extents.allocate(2)


def test_a_run_is_gone_on_with_where_it_ends():
    extents = Extents("pages", 10)
    first = extents.allocate(2)
    assert extents.allocate(3, after=first[-1][1]) == [(2, 5)]


@pytest.mark.parametrize("runs", [[(2, 3)], [(0, 2), (3, 4)], [(9, 11)]])
def test_giving_back_what_is_free_is_refused(runs):
    extents = Extents("pages", 10)
    extents.allocate(2)
    with pytest.raises(EngineError, match="are free, but were held"):
        extents.release(runs)


def test_what_is_lost_or_held_twice_is_found():
    extents = Extents("pages", 10)
    held = extents.allocate(4)
    extents.check_integrity(held)
    with pytest.raises(EngineError, match="held twice or lost"):
        extents.check_integrity([(0, 3)])
    with pytest.raises(EngineError, match="held twice or lost"):
        extents.check_integrity([(0, 4), (3, 4)])


@given(st.data())
def test_pages_balance_after_any_sequence(data):
    size = data.draw(st.integers(1, 30))
    extents = Extents("pages", size)
    held = []
    for count, release in data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=40)):
        if count <= extents.num_free:
            after = held[-1][-1][1] if held else None
            held.append(extents.allocate(count, after=after))
            assert num_pages(held[-1]) == count
        if release < len(held):
            extents.release(held.pop(release))
        extents.check_integrity([run for runs in held for run in runs])
        assert extents.num_free == size - sum(map(num_pages, held))
    for runs in held:
        extents.release(runs)
    assert extents.allocate(size) == [(0, size)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=6), st.integers(0, 20))
def test_runs_are_cut_and_joined_in_order(parts, skipped):
    runs, at = [], 0
    for gap, length in parts:
        runs.append((at + gap, at + gap + length))
        at += gap + length
    assert pages_of(behind(runs, skipped)) == pages_of(runs)[skipped:]
    for cut in range(len(runs) + 1):
        both = joined(runs[:cut], runs[cut:])
        assert pages_of(both) == pages_of(runs)
