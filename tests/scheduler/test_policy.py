"""The policy: what the device computes next."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.scheduler.policy import Batch, Budget, WaitingAppend, WaitingRequest, choose

BUDGET = Budget(rows=100, tokens=50, append_tokens=20, room=True)

requests = st.lists(st.builds(WaitingRequest, st.integers(1, 120), st.integers(0, 80)))
appends = st.lists(st.builds(WaitingAppend, st.integers(0, 40), st.booleans()))


def test_nothing_waits() -> None:
    assert choose([], [], BUDGET) == Batch()


def test_requests_go_before_appends() -> None:
    assert choose([WaitingRequest(10, 0)], [WaitingAppend(1, True)], BUDGET) == Batch(requests=(0,))


def test_requests_fill_rows_and_tokens() -> None:
    assert choose([WaitingRequest(60, 0), WaitingRequest(40, 0), WaitingRequest(1, 0)], [], BUDGET).requests == (0, 1)
    assert choose([WaitingRequest(1, 30), WaitingRequest(1, 30)], [], BUDGET).requests == (0,)


def test_a_request_beyond_the_budget_goes_alone() -> None:
    assert choose([WaitingRequest(500, 500), WaitingRequest(1, 0)], [], BUDGET).requests == (0,)


def test_a_later_request_does_not_overtake() -> None:
    assert choose([WaitingRequest(60, 0), WaitingRequest(60, 0), WaitingRequest(10, 0)], [], BUDGET).requests == (0,)


def test_appends_of_resident_users_come_first() -> None:
    waiting = [WaitingAppend(15, False), WaitingAppend(5, True), WaitingAppend(10, True), WaitingAppend(6, True)]
    assert choose([], waiting, BUDGET) == Batch(appends=(1, 2))


def test_users_without_a_prefix_are_prefilled_when_there_is_room() -> None:
    waiting = [WaitingAppend(15, False), WaitingAppend(5, False), WaitingAppend(1, False)]
    assert choose([], waiting, BUDGET) == Batch(appends=(0, 1))


def test_without_room_they_are_left_to_their_next_request() -> None:
    waiting = [WaitingAppend(15, False), WaitingAppend(5, True)]
    assert choose([], waiting, replace(BUDGET, room=False)) == Batch(appends=(1,), lazy=(0,))


@given(requests, appends, st.booleans())
def test_whatever_waits_something_is_done_within_the_budget(
    requests: list[WaitingRequest], appends: list[WaitingAppend], room: bool
) -> None:
    batch = choose(requests, appends, replace(BUDGET, room=room))
    assert bool(batch.requests or batch.appends or batch.lazy) == bool(requests or appends)
    assert not (batch.requests and (batch.appends or batch.lazy))
    assert len(batch.requests) <= 1 or sum(requests[i].rows for i in batch.requests) <= BUDGET.rows
    assert len(batch.requests) <= 1 or sum(requests[i].tokens for i in batch.requests) <= BUDGET.tokens
    assert len(batch.appends) <= 1 or sum(appends[i].tokens for i in batch.appends) <= BUDGET.append_tokens
    assert not set(batch.appends) & set(batch.lazy)
