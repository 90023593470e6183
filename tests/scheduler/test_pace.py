"""How much a batch of appends may hold, by what those before it took."""

from __future__ import annotations

import numpy as np
import pytest

from xgr_stream.config import EngineConfig
from xgr_stream.scheduler.pace import SMALL_EVERY, SMALL_SHARE, Pace, Step
from xgr_stream.scheduler.policy import WaitingAppend
from xgr_stream.testing.clock import ManualClock


def test_where_only_one_user_at_a_time_was_seen_two_are_tried() -> None:
    """Or pieces would stay as short for as long as others wait."""
    pace = Pace(EngineConfig(device="cuda"), ManualClock())
    waiting = [WaitingAppend(3, resident=True)] * 128

    def users(appended: int) -> int:
        for _ in range(8):
            pace.appended(Step("", appended, 3 * appended), 2e-3 + 0.1e-3 * appended)
        return pace.budget_for("", waiting, 0, 1, pressed=False).append_tokens // 3

    for _ in range(2 * SMALL_EVERY):
        assert users(appended=1) == 2
        pace.appending(0.0, Step("", 1, 3), ahead=True)
    assert 10 <= users(appended=2) <= 300
    assert users(appended=40) in range(18, 23)  # as many as take twice what is fixed


def test_one_batch_in_so_many_is_small() -> None:
    pace = Pace(EngineConfig(device="cuda"), ManualClock())
    for users in (*range(1, 40),) * 5:
        pace.appended(Step("", users, 3 * users), 2e-3 + 0.1e-3 * users)
    waiting = [WaitingAppend(3, resident=True)] * 128
    sizes = []
    for _ in range(2 * SMALL_EVERY):
        sizes.append(pace.budget_for("", waiting, 0, 1, pressed=False).append_tokens)
        pace.appending(0.0, Step("", 1, 384), ahead=False)  # a chunk of a prefill does not count
        pace.appending(0.0, Step("", 20, 60), ahead=True)
        pace.appending(0.0, Step("other", 20, 60), ahead=True)  # nor one of another version
    usual = [sizes[0]] * (SMALL_EVERY - 1)
    assert sizes == [*usual, int(SMALL_SHARE * sizes[0])] * 2


@pytest.mark.parametrize("seed", [3, 4, 5, 7])
def test_batches_of_appends_are_about_as_long_although_times_are_noisy(seed: int) -> None:
    """Always more wait than one holds. What is fixed is 1.6 ms, and each user's 0.06, so that 26 users are right."""
    draws, pace = np.random.default_rng(seed), Pace(EngineConfig(device="cuda"), ManualClock())
    waiting = [WaitingAppend(3, resident=True)] * 128
    users, noise = 1, 1.0
    taken = []
    for number in range(4_000):
        if number % 300 == 0:
            noise = draws.uniform(1.0, 1.2)  # another core
        step = Step("", users, 3 * users)
        pace.appending(0.0, step, ahead=True)
        pace.appended(step, (1.6e-3 + 0.06e-3 * users) * noise * draws.normal(1.0, 0.05))
        users = max(1, pace.budget_for("", waiting, 0, 1, pressed=False).append_tokens // 3)
        taken.append(users)
    low, high = np.percentile([each for each in taken[1_000:] if each > 5], (1, 99))
    assert 16 <= low <= high <= 40  # with none that are small, 10 to 54


def test_one_user_more_is_tried_whatever_they_lack() -> None:
    pace = Pace(EngineConfig(device="cuda"), ManualClock())
    for _ in range(50):
        pace.appended(Step("", 1, 384), 3e-3)  # chunks of prefills, too, are of one user
        pace.appended(Step("", 1, 3), 2.1e-3)
    waiting = [WaitingAppend(tokens, resident=True) for tokens in (3, 6, 9)]
    assert pace.budget_for("", waiting, 0, 1, pressed=False).append_tokens >= 12
