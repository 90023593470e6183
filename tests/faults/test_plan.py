"""A run's faults depend on its seed alone, and every kind comes about."""

from __future__ import annotations

import pytest

from xgr_stream.cli.faults.handover import Answer, Silence, silences
from xgr_stream.cli.faults.plan import KINDS, LEAST_FAULTS, OF_THE_BROKER, Soak, schedule


@pytest.mark.parametrize("seed", range(5))
def test_two_minutes_bring_every_kind_of_fault(seed: int) -> None:
    faults = schedule(Soak(seed))
    assert faults == schedule(Soak(seed))
    assert {fault.kind for fault in faults} == set(KINDS)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(0 < fault.at_s < 120 for fault in faults)


def test_seeds_differ_and_short_runs_have_faults_too() -> None:
    assert schedule(Soak(1)) != schedule(Soak(2))
    assert {fault.kind for fault in schedule(Soak(1, seconds=6))} == set(KINDS)
    assert len(schedule(Soak(1, seconds=6, kinds=("rewind",)))) == LEAST_FAULTS


def test_brokers_that_are_not_ours_are_left_alone() -> None:
    kinds = tuple(kind for kind in KINDS if kind not in OF_THE_BROKER)
    assert {fault.kind for fault in schedule(Soak(3, kinds=kinds))} == set(kinds)


def test_silence_is_counted_from_the_old_owners_last_answer_to_the_new_ones_first() -> None:
    def answer(partition: int, at: float, worker: str) -> Answer:
        return Answer(partition, at - 0.1, at, worker, "")

    answers = [
        *(answer(0, 1.0, "old"), answer(0, 2.0, "old"), answer(0, 5.5, "new"), answer(0, 6.0, "new")),
        *(answer(1, 3.0, "old"), answer(1, 7.0, "old")),
        *(answer(2, 4.0, "new"), answer(2, 9.0, "old")),
    ]
    assert silences(answers, "old", "new", 1.5, 10.0) == [Silence(0, 3.5)]  # the others did not move
