"""Which batch the device computes next: a pure function of what waits and of the budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class WaitingRequest(NamedTuple):
    """A request that could be decoded."""

    rows: int
    """Its beams."""
    tokens: int
    """Tokens to append or prefill before its beams can start."""


class WaitingAppend(NamedTuple):
    """A user whose prefix is behind their history."""

    tokens: int
    resident: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one batch may hold. Its first entry is taken whatever its size: else it would wait for ever."""

    rows: int
    tokens: int
    append_tokens: int
    """Tokens of one append batch. A request that comes meanwhile waits for it to end, so it is kept short."""
    room: bool
    """Whether the cache can take users who have no prefix yet without turning others out."""


class Batch(NamedTuple):
    """Indices into what waits. Either requests or appends, never both."""

    requests: tuple[int, ...] = ()
    appends: tuple[int, ...] = ()
    lazy: tuple[int, ...] = ()
    """Appends to leave to the user's next request."""


def choose(requests: Iterable[WaitingRequest], appends: Sequence[WaitingAppend], budget: Budget) -> Batch:
    """Requests first, in the order in which they came; appends only while no request waits.

    Among the appends, users with a prefix come first: little is missing, and the next request gains all of it. Users
    without one are prefilled with what time is left, while there is room; otherwise they wait until they ask.
    """
    decode = _fill(requests, budget)
    if decode:
        return Batch(requests=decode)
    resident = [(i, append.tokens) for i, append in enumerate(appends) if append.resident]
    cold = [(i, append.tokens) for i, append in enumerate(appends) if not append.resident]
    lazy = () if budget.room else tuple(i for i, _ in cold)
    return Batch(appends=_within(resident or ([] if lazy else cold), budget.append_tokens), lazy=lazy)


def _fill(requests: Iterable[WaitingRequest], budget: Budget) -> tuple[int, ...]:
    """The longest run of requests from the first one that stays within rows and tokens."""
    rows = tokens = count = 0
    for request in requests:
        rows += request.rows
        tokens += request.tokens
        if count and (rows > budget.rows or tokens > budget.tokens):
            break
        count += 1
    return tuple(range(count))


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
