"""What a soak run does, and when: a pure function of its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "kill a worker",
    "freeze a worker",
    "slow a worker",
    "a worker joins",
    "a worker leaves",
    "stop the broker",
    "kill the broker",
    "rewind",
    "corrupt messages",
]

KINDS: tuple[Kind, ...] = get_args(Kind)
OF_THE_BROKER: tuple[Kind, ...] = ("stop the broker", "kill the broker")

LEAST_FAULTS = 5
SECONDS_A_FAULT = 11.0
FIRST_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Soak:
    """The size of one run."""

    seed: int
    seconds: float = 120.0
    users: int = 40
    events_per_s: float = 60.0
    requests_per_s: float = 15.0
    partitions: int = 4
    workers: int = 2
    """At the start; faults make it one to three."""
    session_timeout_s: float = 6.0
    driver: Literal["kafka", "faust"] = "kafka"
    kinds: tuple[Kind, ...] = KINDS
    transactional: bool = False
    """The workers commit transactions, and what is read with `read_committed` is held to: each answer once."""
    standby: bool = False
    """Each worker keeps copies of the others' histories, and takes a partition on from its copy."""
    copies: bool = False
    """The events come from a topic of the application's, which the workers copy (Faust's driver alone)."""
    nodes: int = 1
    """Brokers; with three, each record is on all and acknowledged by two at least, and one of them goes at a time."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    kind: Kind
    size: float
    """From 0 to 1: how long, how many, or which, as the kind has it."""


def schedule(soak: Soak) -> list[Fault]:
    """The faults of a run in the order of their times. Each kind comes once before any comes again; they overlap."""
    chance = random.Random(soak.seed)
    count = max(LEAST_FAULTS, len(soak.kinds), round(soak.seconds / SECONDS_A_FAULT))
    last_s = max(FIRST_AFTER_S, soak.seconds * 0.9)
    times = sorted(chance.uniform(FIRST_AFTER_S, last_s) for _ in range(count))
    kinds: list[Kind] = []
    while len(kinds) < count:
        kinds += chance.sample(soak.kinds, len(soak.kinds))
    return [Fault(at_s, kind, chance.random()) for at_s, kind in zip(times, kinds, strict=False)]
