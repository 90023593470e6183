"""The collector of cyclic garbage, standing still."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from tests.garbage import Knot
from xgr_stream.collector import collector_resting


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def make_enough_for_a_collection() -> None:
    kept = [Knot() for _ in range(200_000)]
    assert kept


def test_garbage_waits_until_it_rests_no_more() -> None:
    with collector_resting() as ours:
        gone = weakref.ref(Knot())
        make_enough_for_a_collection()
        assert gone() is not None
    assert ours
    make_enough_for_a_collection()
    assert gone() is None


def test_it_rests_until_the_last_has_left_on_whatever_thread() -> None:
    entered, leave = threading.Event(), threading.Event()

    def rest() -> None:
        with collector_resting():
            entered.set()
            assert leave.wait(10)

    thread = threading.Thread(target=rest)
    with collector_resting():
        thread.start()
        assert entered.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_who_switches_it_on_again_within_has_it_on() -> None:
    """Where it had been off, it is an application's own."""
    gc.disable()
    with collector_resting():
        gc.enable()
        with collector_resting():
            pass
        assert gc.isenabled()
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off() -> None:
    gc.disable()
    with collector_resting() as ours, collector_resting() as inner:
        assert not gc.isenabled()
    assert (ours, inner, gc.isenabled()) == (False, False, False)


def test_an_error_within_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), collector_resting():
        _ = 1 / 0
    assert gc.isenabled()
