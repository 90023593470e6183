"""What the device does next, and for whom there is time: pure functions of queues, budgets, costs and the clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

AGEING_S = 1.0
"""A request that has waited so long is overtaken by none that comes after it, however near the other's deadline."""
RESERVED_SHARE, RESERVED_S = 0.1, 0.02
"""How much of the time that a request has left is kept for what comes after its decode, and the most of it."""
ROUNDING_S = 1e-9
"""A request is not late by less: its end is a sum, from which others were taken off again."""
APPEND_AGEING_S, APPEND_SHARE = 0.03, 0.1
"""Events that have waited so long for their part in their user's prefix go before requests, for at most this share of
the device's time: else a busy device would leave all of them to the users' next requests."""
PRESSED = 0.5
"""Share of their time that the waiting requests may take before appends are left to the users' next requests."""


class WaitingRequest(NamedTuple):
    """A request that could be decoded."""

    rows: int
    """Its beams."""
    tokens: int
    """Tokens to append or prefill before its beams can start."""
    partition: int = 0
    seconds: float = 0.0
    """That it adds to a batch."""
    left_s: float = float("inf")
    """Until its batch must have ended, if that starts now."""


class WaitingAppend(NamedTuple):
    """A user whose prefix is behind their history."""

    tokens: int
    resident: bool
    held: bool = False
    """Whether it is a prefill in chunks, and another one is under way."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one batch may hold. Its first entry is taken whatever its size: else it would wait for ever."""

    rows: int
    tokens: int
    append_tokens: int
    """Tokens of one append batch. A request that comes meanwhile waits for it to end, so it is kept short."""
    room: bool
    """Whether the cache can take users who have no prefix yet without turning others out."""
    fixed_s: float = 0.0
    """That a batch takes whatever it holds."""
    pressed: bool = False
    """Whether the requests need all of the device's time."""
    requests: float = float("inf")
    """That the device was seen to have memory for, whatever their rows."""
    appends_due: bool = False
    """Whether an append has waited long enough to go before requests."""


class Batch(NamedTuple):
    """Indices into what waits. Either requests or appends, never both."""

    requests: tuple[int, ...] = ()
    appends: tuple[int, ...] = ()
    lazy: tuple[int, ...] = ()
    """Appends to leave to the user's next request."""


def choose(requests: Sequence[WaitingRequest], appends: Sequence[WaitingAppend], budget: Budget) -> Batch:
    """Requests first, in the order in which they are given; appends while no request waits, or when they are due.

    Among the appends, users with a prefix come first: little is missing, and the next request gains all of it. Users
    without one are prefilled with what time is left, while there is room; otherwise they wait until they ask. One that
    is held keeps nobody behind it from theirs.
    """
    resident = [(i, append.tokens) for i, append in enumerate(appends) if append.resident]
    if resident and budget.appends_due and not budget.pressed:
        return Batch(appends=_within(resident, budget.append_tokens))
    lazy = tuple(range(len(appends))) if budget.pressed else ()
    decode = _share(requests, budget)
    if decode or lazy:
        return Batch(requests=decode, lazy=lazy)
    cold = [(i, append.tokens) for i, append in enumerate(appends) if not append.resident]
    if not budget.room:
        return Batch(appends=_within(resident, budget.append_tokens), lazy=tuple(i for i, _ in cold))
    begins = [(i, tokens) for i, tokens in cold if not appends[i].held]
    return Batch(appends=_within(resident or begins, budget.append_tokens))


def _share(requests: Sequence[WaitingRequest], budget: Budget) -> tuple[int, ...]:
    """The requests of one batch. While not all fit, each partition that waits gets an equal share of it, and what
    others leave of theirs; the first request is always taken. Within a partition no request overtakes another."""
    partitions = {request.partition for request in requests}
    fair = _fill(requests, range(len(requests)), budget, share=1 / max(1, len(partitions)))
    if len(fair) == len(requests) or len(partitions) < 2:
        return fair
    return _fill(requests, (*fair, *sorted(set(range(len(requests))).difference(fair))), budget, share=1.0)


def _fill(requests: Sequence[WaitingRequest], order: Iterable[int], budget: Budget, *, share: float) -> tuple[int, ...]:
    """Indices that fit into the budget, no partition's into more than its share of it (or one request), in `order`.

    A batch also ends where one more would make an earlier one late, as all are answered when it ends; but not before
    it takes twice its fixed time, since then the device would do little else than begin.
    """
    chosen: list[int] = []
    closed: set[int] = set()
    used: dict[int, tuple[int, int]] = {}
    rows = tokens = 0
    seconds, left_s = budget.fixed_s, float("inf")
    for i in order:
        request = requests[i]
        if request.partition in closed:
            continue
        own_rows, own_tokens = used.get(request.partition, (0, 0))
        own_rows, own_tokens = own_rows + request.rows, own_tokens + request.tokens
        longer = seconds + request.seconds
        over = rows + request.rows > budget.rows or tokens + request.tokens > budget.tokens
        over = over or longer > max(left_s, 2 * budget.fixed_s) or len(chosen) + 1 > budget.requests
        full = request.partition in used and (own_rows > share * budget.rows or own_tokens > share * budget.tokens)
        if chosen and (over or full):
            closed.add(request.partition)
            continue
        used[request.partition] = own_rows, own_tokens
        rows, tokens, seconds = rows + request.rows, tokens + request.tokens, longer
        if request.left_s >= longer:  # one that is late already makes nobody wait for another batch
            left_s = min(left_s, request.left_s)
        chosen.append(i)
    return tuple(chosen)


def _within(appends: Sequence[tuple[int, int]], budget_tokens: int) -> tuple[int, ...]:
    """Indices of the longest run of (index, tokens) from the first one that stays within the budget."""
    chosen: list[int] = []
    tokens = 0
    for index, needed in appends:
        tokens += needed
        if chosen and tokens > budget_tokens:
            break
        chosen.append(index)
    return tuple(chosen)


class Queued(NamedTuple):
    """A request in the queue, as admission sees it."""

    order: float
    """Its place, see `order_of`."""
    due: float
    """When its decode must have ended; infinite if it has no deadline."""
    seconds: float
    """That the device takes for it."""


def order_of(deadline: float | None, arrived: float) -> float:
    """What the queue is sorted by: the deadline, or the end of its ageing if that comes first. On the clock."""
    aged = arrived + AGEING_S
    return aged if deadline is None else min(deadline, aged)


def due_at(deadline: float | None, now: float) -> float:
    """When the decode of a request with this deadline must have ended, so that its answer can still be written."""
    if deadline is None:
        return float("inf")
    return deadline - min(RESERVED_S, RESERVED_SHARE * max(0.0, deadline - now))


def batching_s(batch_s: float, left_s: float) -> float:
    """How much longer than for itself a request may have to wait for its batch to end: for a full one's `batch_s`, but
    not more than half of the time that it has left."""
    return min(batch_s, max(0.0, left_s) / 2)


def admit(queue: Sequence[Queued], new: Queued, free_at: float, end: float) -> int | None:
    """Where in the queue a new request goes, so that it and all behind it are done when they are due; None: nowhere.

    `queue` is in its order; the device starts on its first at `free_at` and ends with its last at `end`. The place is
    that of the request's own order, or an earlier one if it is too late there. A request that will be late anyway
    keeps nobody out. With a later deadline a request has all the places that it has with an earlier one.
    """
    finish = end
    for place in range(len(queue), -1, -1):
        ahead = queue[place - 1] if place else None
        if (ahead is None or ahead.order <= new.order) and (finish if place else free_at) + new.seconds <= new.due:
            return place
        if ahead is not None:
            if finish - ROUNDING_S <= ahead.due < finish + new.seconds:
                return None
            finish -= ahead.seconds
    return None


def is_pressed(wait_s: float, left_s: float) -> bool:
    """Whether requests that will wait `wait_s` and have `left_s` until they are due leave no time for appends."""
    return wait_s > PRESSED * max(0.0, left_s)


def hold_s(busy_s: float, lead_s: float, rows: int, budget: Budget) -> float:
    """How long to wait for more requests before the next batch starts. None while the device is idle, nor when the
    batch is full: only as long as the device is busy with the one before, less what it takes to prepare the next."""
    return max(0.0, busy_s - lead_s) if rows < budget.rows else 0.0
