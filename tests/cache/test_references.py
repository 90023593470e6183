import numpy as np
import pytest

from xgr_stream.cache import ReferenceCounts, SlotCounts
from xgr_stream.errors import EngineError, OutOfMemory


def test_a_place_is_free_again_when_its_last_holder_has_released_it():
    counts = ReferenceCounts("pages", 3)
    places = counts.allocate(2)
    counts.retain(places[:1])
    counts.release(places)
    assert counts.num_free == 2
    counts.release(places[:1])
    assert counts.num_free == 3
    counts.check_integrity(np.zeros(3, dtype=np.int32))


def test_asking_for_more_than_is_free_says_so():
    counts = ReferenceCounts("pages", 3)
    counts.allocate(2)
    with pytest.raises(EngineError, match="2 pages asked for, but only 1 of 3 are free"):
        counts.allocate(2)


def test_releasing_what_is_free_is_refused():
    counts = ReferenceCounts("pages", 3)
    places = counts.allocate(1)
    counts.release(places)
    with pytest.raises(EngineError, match="are free, but were held"):
        counts.release(places)


def test_a_holder_too_many_is_found():
    counts = ReferenceCounts("pages", 3)
    counts.allocate(1)
    with pytest.raises(EngineError, match="holders"):
        counts.check_integrity(np.zeros(3, dtype=np.int32))


def test_a_slot_is_free_again_when_its_last_holder_has_released_it():
    slots = SlotCounts("hidden slots", 2)
    first, second = slots.allocate(), slots.allocate()
    slots.retain(first)
    slots.release(first)
    assert {first, second} == {0, 1}
    with pytest.raises(OutOfMemory, match="all 2 hidden slots are in use"):
        slots.allocate()
    slots.check_integrity({0: 1, 1: 1})
    slots.release(first)
    assert slots.num_free == 1
    slots.check_integrity({second: 1})
    assert slots.allocate() == first


def test_releasing_or_retaining_a_free_slot_is_refused():
    slots = SlotCounts("hidden slots", 2)
    slots.release(slots.allocate())
    for call in (slots.release, slots.retain):
        with pytest.raises(EngineError, match="hidden slots 0 is free, but was held"):
            call(0)
    slots.check_integrity({})


def test_a_holder_of_a_slot_too_many_is_found():
    slots = SlotCounts("hidden slots", 2)
    slots.allocate()
    with pytest.raises(EngineError, match="have holders"):
        slots.check_integrity({})
