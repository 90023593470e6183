"""Who does what when: by the clock, whatever is answered, or so many at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOOPED = 4_096
"""Requests, and events, before a loop begins anew."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What arrives, whatever its rate."""

    users: int
    zipf: float
    """Exponent of the users' frequencies; 0: all alike."""
    events_per_request: float
    cold_share: float
    """Of the requests, those of users who have no prefix when they ask."""
    seed: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """Events and requests by their times, seconds from the start."""

    events_at: NDArray[np.float64]
    event_users: NDArray[np.int64]
    requests_at: NDArray[np.float64]
    request_users: NDArray[np.int64]
    cold: NDArray[np.bool_]
    """[request]"""


@dataclass(frozen=True, slots=True)
class Loop:
    """Requests of which so many are under way at any time: for each that is answered the next one is sent, and its
    share of the events with it. Users are taken in this order, over and over."""

    concurrency: int
    events_per_request: float
    event_users: NDArray[np.int64]
    request_users: NDArray[np.int64]
    cold: NDArray[np.bool_]
    """[request]"""


def schedule(mix: Mix, requests_per_s: float, seconds: float) -> Schedule:
    """Poisson arrivals over so many seconds, the users by Zipf's law. Equal arguments give equal schedules."""
    random = np.random.default_rng((mix.seed, round(requests_per_s * 1000)))
    frequencies = _frequencies(mix)

    def arrivals(rate: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        times = np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))
        return times, random.choice(mix.users, len(times), p=frequencies)

    events_at, event_users = arrivals(requests_per_s * mix.events_per_request)
    requests_at, request_users = arrivals(requests_per_s)
    cold = random.uniform(size=len(requests_at)) < mix.cold_share
    return Schedule(events_at, event_users, requests_at, request_users, cold)


def loop(mix: Mix, concurrency: int) -> Loop:
    """The users by Zipf's law. Equal arguments give equal loops."""
    random = np.random.default_rng((mix.seed, concurrency))
    frequencies = _frequencies(mix)
    event_users, request_users = (random.choice(mix.users, LOOPED, p=frequencies) for _ in range(2))
    return Loop(
        concurrency, mix.events_per_request, event_users, request_users, random.uniform(size=LOOPED) < mix.cold_share
    )


def _frequencies(mix: Mix) -> NDArray[np.float64]:
    """[users]"""
    weights = 1.0 / np.arange(1, mix.users + 1) ** mix.zipf
    # Who is frequent has nothing to do with the number, nor with the partition.
    return np.random.default_rng(mix.seed).permutation(weights / weights.sum())
