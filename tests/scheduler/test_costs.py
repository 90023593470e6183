"""Learned step times: what was measured is predicted, whatever happened in between."""

from __future__ import annotations

import random

import pytest

from xgr_stream.scheduler.costs import FEW, StepCosts


def seconds(rows: int, tokens: int) -> float:
    return 0.003 + rows * 2e-6 + tokens * 5e-6


def test_nothing_is_known_before_a_shape_was_seen_often_enough() -> None:
    costs = StepCosts()
    for _ in range(FEW):
        costs.note(64, 0, 20.0)  # compiled meanwhile
        assert costs.seconds(64, 0) == 0.0
    costs.note(64, 0, 0.01)
    assert costs.seconds(64, 0) > 0


def test_in_haste_the_first_step_counts() -> None:
    costs = StepCosts(hasty=True)
    costs.note(4, 100, 0.01)
    assert costs.seconds(4, 100) == pytest.approx(0.01)


def test_step_times_are_learned_through_noise_and_outliers() -> None:
    chance = random.Random(0)
    costs = StepCosts()
    for number in range(2_000):
        rows, tokens = chance.choice([64, 128, 300, 700, 1500, 2048]), chance.choice([0, 0, 3, 60, 1000, 2000])
        took = seconds(rows, tokens) * chance.uniform(0.97, 1.05)
        costs.note(rows, tokens, 5.0 if number % 20 == 0 else took)
    for rows, tokens in ((64, 0), (2048, 0), (2048, 2000), (1000, 500)):
        assert costs.seconds(rows, tokens) == pytest.approx(seconds(rows, tokens), rel=0.15)


def test_a_device_that_became_slower_is_followed() -> None:
    costs = StepCosts()
    for factor in (1.0, 3.0):
        for _ in range(60):
            for rows in (64, 512, 2048):
                costs.note(rows, 0, factor * seconds(rows, 0))
    assert costs.seconds(2048, 0) == pytest.approx(3 * seconds(2048, 0), rel=0.05)


def test_no_coefficient_is_negative() -> None:
    costs = StepCosts()
    for rows, took in ((64, 0.01), (2048, 0.002), (512, 0.005)):
        for _ in range(10):
            costs.note(rows, 0, took)
    assert min(costs.fixed_s, costs.row_s, costs.token_s) >= 0


def test_what_comes_now_is_predicted_best() -> None:
    costs = StepCosts()
    for _ in range(20):
        costs.note(64, 0, 0.020)  # small batches beside other work
    for _ in range(100):
        costs.note(2048, 0, 0.010)
    assert costs.seconds(2048, 0) == pytest.approx(0.010, rel=0.15)
