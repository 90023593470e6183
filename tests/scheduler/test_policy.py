"""The policy: what the device computes next, and for whom there is time."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xgr_stream.scheduler.policy import (
    AGEING_S,
    RESERVED_S,
    Batch,
    Budget,
    Queued,
    WaitingAppend,
    WaitingRequest,
    admit,
    batching_s,
    choose,
    due_at,
    hold_s,
    is_pressed,
    order_of,
)

BUDGET = Budget(rows=100, tokens=50, append_tokens=20, room=True)

partitions = st.integers(0, 3)
requests = st.lists(st.builds(WaitingRequest, st.integers(1, 120), st.integers(0, 80), partitions))
appends = st.lists(st.builds(WaitingAppend, st.integers(0, 40), st.booleans()))
times = st.floats(0, 10, allow_nan=False)


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


def test_partitions_share_a_batch_equally_while_not_all_fits() -> None:
    flood = [WaitingRequest(10, 0, 0)] * 20
    batch = choose([*flood, *([WaitingRequest(10, 0, 1)] * 20)], [], BUDGET).requests
    assert sorted(batch) == [0, 1, 2, 3, 4, 20, 21, 22, 23, 24]


def test_what_a_partition_leaves_of_its_share_goes_to_the_others() -> None:
    batch = choose([*([WaitingRequest(10, 0, 0)] * 20), WaitingRequest(10, 0, 1)], [], BUDGET).requests
    assert sorted(batch) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 20]


def test_a_batch_ends_where_one_more_would_make_an_earlier_one_late() -> None:
    budget = replace(BUDGET, fixed_s=0.01)
    soon, later = WaitingRequest(1, 0, 0, 0.01, 0.035), WaitingRequest(1, 0, 0, 0.01, 1.0)
    assert choose([soon, later, later, later], [], budget).requests == (0, 1)
    assert choose([later, later, later, later], [], budget).requests == (0, 1, 2, 3)


def test_a_request_that_is_late_anyway_makes_no_batch_small() -> None:
    late, other = WaitingRequest(1, 0, 0, 0.01, 0.0), WaitingRequest(1, 0, 0, 0.01, 1.0)
    assert choose([late, other, other], [], replace(BUDGET, fixed_s=0.01)).requests == (0, 1, 2)


def test_appends_of_resident_users_come_first() -> None:
    waiting = [WaitingAppend(15, False), WaitingAppend(5, True), WaitingAppend(10, True), WaitingAppend(6, True)]
    assert choose([], waiting, BUDGET) == Batch(appends=(1, 2))


def test_users_without_a_prefix_are_prefilled_when_there_is_room() -> None:
    waiting = [WaitingAppend(15, False), WaitingAppend(5, False), WaitingAppend(1, False)]
    assert choose([], waiting, BUDGET) == Batch(appends=(0, 1))


def test_without_room_they_are_left_to_their_next_request() -> None:
    waiting = [WaitingAppend(15, False), WaitingAppend(5, True)]
    assert choose([], waiting, replace(BUDGET, room=False)) == Batch(appends=(1,), lazy=(0,))


def test_under_pressure_all_appends_are_left_to_the_next_request() -> None:
    waiting = [WaitingAppend(15, False), WaitingAppend(5, True)]
    assert choose([WaitingRequest(1, 0)], waiting, replace(BUDGET, pressed=True)) == Batch(requests=(0,), lazy=(0, 1))


def test_appends_that_are_due_go_before_requests_unless_these_need_all_of_the_time() -> None:
    asked, waiting = [WaitingRequest(1, 0)], [WaitingAppend(15, False), WaitingAppend(5, True), WaitingAppend(16, True)]
    due = replace(BUDGET, appends_due=True)
    assert choose(asked, waiting, due) == Batch(appends=(1,))
    assert choose(asked, waiting[:1], due) == Batch(requests=(0,))  # a prefill is not what is due
    assert choose(asked, waiting, replace(due, pressed=True)) == Batch(requests=(0,), lazy=(0, 1, 2))


@given(requests, appends, st.booleans(), st.booleans(), st.booleans())
@example([], [WaitingAppend(0, False, held=True)], True, False, False)
def test_whatever_waits_something_is_done_within_the_budget(
    requests: list[WaitingRequest], appends: list[WaitingAppend], room: bool, pressed: bool, due: bool
) -> None:
    batch = choose(requests, appends, replace(BUDGET, room=room, pressed=pressed, appends_due=due))
    # One that is held waits for the prefill that is under way.
    wanted = requests or any(append.resident or not append.held or pressed or not room for append in appends)
    assert bool(batch.requests or batch.appends or batch.lazy) == bool(wanted)
    assert not (batch.requests and batch.appends)
    assert len(batch.requests) <= 1 or sum(requests[i].rows for i in batch.requests) <= BUDGET.rows
    assert len(batch.requests) <= 1 or sum(requests[i].tokens for i in batch.requests) <= BUDGET.tokens
    assert len(batch.appends) <= 1 or sum(appends[i].tokens for i in batch.appends) <= BUDGET.append_tokens
    assert not set(batch.appends) & set(batch.lazy)


@given(requests)
def test_the_first_is_always_taken_and_none_overtakes_another_of_its_partition(requests: list[WaitingRequest]) -> None:
    chosen = set(choose(requests, [], BUDGET).requests)
    assert not requests or 0 in chosen
    for partition in range(4):
        own = [i in chosen for i, request in enumerate(requests) if request.partition == partition]
        assert own == sorted(own, reverse=True)


def test_with_more_partitions_than_room_each_has_one_before_any_has_two() -> None:
    waiting = [WaitingRequest(30, 0, partition) for partition in (0, 0, 0, 1, 2, 3, 4)]
    assert choose(waiting, [], BUDGET).requests == (0, 3, 4)


@given(st.lists(partitions, min_size=1, max_size=200))
def test_a_flooded_partition_takes_no_more_than_its_share(waiting: list[int]) -> None:
    """Equal requests: whoever has fewer in the batch than another has no more waiting."""
    batch = choose([WaitingRequest(10, 0, partition) for partition in waiting], [], BUDGET).requests
    taken = {partition: sum(waiting[i] == partition for i in batch) for partition in set(waiting)}
    share = BUDGET.rows // 10 // len(taken)
    for partition, count in taken.items():
        assert count >= min(share, waiting.count(partition))


# Admission


def queue_of(entries: list[tuple[float, float]], free_at: float) -> tuple[list[Queued], float]:
    """Requests of (due, seconds) that arrived together, as they were admitted; and when the last is done."""
    queue: list[Queued] = []
    for due, seconds in entries:
        new = Queued(order_of(due, 0.0), due, seconds)
        place = admit(queue, new, free_at, free_at + sum(entry.seconds for entry in queue))
        if place is not None:
            queue.insert(place, new)
    return queue, free_at + sum(entry.seconds for entry in queue)


entries = st.lists(st.tuples(times, st.floats(0.001, 2)), max_size=12)


@given(entries, st.floats(0, 1))
def test_whoever_is_admitted_is_done_when_due(entries: list[tuple[float, float]], free_at: float) -> None:
    queue, _ = queue_of(entries, free_at)
    for entry, ends in zip(queue, accumulate((e.seconds for e in queue), initial=free_at), strict=False):
        assert ends + entry.seconds <= entry.due + 1e-6


@given(entries)
def test_the_queue_is_in_the_order_of_deadlines(entries: list[tuple[float, float]]) -> None:
    soon = [(due % AGEING_S, seconds) for due, seconds in entries]
    queue, _ = queue_of(soon, 0.0)
    assert [entry.order for entry in queue] == sorted(entry.order for entry in queue)


@given(entries, st.floats(0, 1), times, times, st.floats(0.001, 2), st.floats(-3, 3))
def test_admission_is_monotone_in_the_deadline(
    entries: list[tuple[float, float]], free_at: float, one: float, other: float, seconds: float, slip: float
) -> None:
    """Even when the device turned out to be later than it was thought to be."""
    queue, end = queue_of(entries, free_at)
    early, late = sorted((one, other))

    def place(due: float) -> int | None:
        return admit(queue, Queued(order_of(due, 0.0), due, seconds), free_at + slip, end + slip)

    assert place(early) is None or place(late) is not None


@given(st.lists(st.tuples(times, times), min_size=1, max_size=20), times)
def test_nobody_is_overtaken_beyond_the_ageing(earlier: list[tuple[float, float]], deadline: float) -> None:
    """However far its deadline: whoever comes later than the ageing goes behind it."""
    for arrived, left in earlier:
        newcomer = arrived + AGEING_S
        assert order_of(newcomer + deadline, newcomer) >= order_of(arrived + left, arrived)
        assert order_of(None, arrived) == arrived + AGEING_S


def test_an_urgent_request_goes_before_others_that_have_time() -> None:
    queue = [Queued(0.5, 0.5, 0.1), Queued(0.9, 0.9, 0.1)]
    assert admit(queue, Queued(0.15, 0.15, 0.1), 0.0, 0.2) == 0
    assert admit(queue, Queued(0.6, 0.6, 0.1), 0.0, 0.2) == 1
    assert admit(queue, Queued(1.0, 5.0, 0.1), 0.0, 0.2) == 2


def test_a_request_that_makes_another_late_is_refused() -> None:
    queue = [Queued(0.5, 0.5, 0.45)]
    assert admit(queue, Queued(0.2, 0.2, 0.1), 0.0, 0.45) is None


def test_a_request_that_will_be_late_anyway_keeps_nobody_out() -> None:
    queue = [Queued(0.1, 0.1, 0.2)]
    assert admit(queue, Queued(0.9, 0.9, 0.1), 0.0, 0.2) == 1


def test_time_is_reserved_for_what_comes_after_the_decode() -> None:
    assert due_at(10.0, 0.0) == 10.0 - RESERVED_S
    assert due_at(0.1, 0.0) == pytest.approx(0.09)
    assert due_at(None, 0.0) == float("inf")


def test_a_request_allows_for_its_batch_with_half_of_its_time_at_most() -> None:
    assert batching_s(0.2, 1.0) == 0.2
    assert batching_s(0.2, 0.1) == 0.05
    assert batching_s(0.2, -1.0) == 0.0


def test_appends_are_shed_before_requests_are_refused() -> None:
    assert not is_pressed(0.4, 1.0)
    assert is_pressed(0.6, 1.0)  # and one that waits 0.6 of 1.0 s is still admitted
    assert admit([Queued(1.0, 1.0, 0.6)], Queued(1.0, 1.0, 0.1), 0.0, 0.6) == 1


def test_a_batch_waits_only_for_a_busy_device_and_only_if_it_is_not_full() -> None:
    assert hold_s(0.0, 0.001, 10, BUDGET) == 0.0
    assert hold_s(0.003, 0.001, 10, BUDGET) == 0.002
    assert hold_s(0.003, 0.001, BUDGET.rows, BUDGET) == 0.0
