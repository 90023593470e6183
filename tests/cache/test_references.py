import numpy as np
import pytest

from xgr_stream.cache import ReferenceCounts
from xgr_stream.errors import EngineError


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
