"""Repeated timings of one piece of work, end to end from the host."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from xgr_stream.cli.worker import COLLECTOR


@dataclass(frozen=True, slots=True)
class Samples:
    """What each of some repetitions took."""

    times_ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.times_ms)

    @property
    def quartiles(self) -> tuple[float, float]:
        first, third = np.percentile(self.times_ms, (25, 75))
        return float(first), float(third)

    @property
    def p99(self) -> float:
        return float(np.percentile(self.times_ms, 99))

    def __str__(self) -> str:
        first, third = self.quartiles
        return f"{self.median:.2f} ({first:.2f}-{third:.2f}, {self.p99:.2f})"

    def figures(self) -> dict[str, float]:
        first, third = self.quartiles
        return {"median": self.median, "q1": first, "q3": third, "p99": self.p99, "samples": len(self.times_ms)}


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def collect_as_a_worker() -> None:
    """Put what is there out of the garbage collector's sight, and have that come as rarely as in a worker."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR)


def measure(
    run: Callable[[], Any],
    device: torch.device,
    *,
    repeats: int,
    warm_up: int = 3,
    before: Callable[[], Any] | None = None,
) -> Samples:
    """Time `run` from an idle device until it returns, which must be when its work is done; `before` each, untimed, and
    `warm_up` untimed runs first."""
    return measure_in_turn([run], device, repeats=repeats, warm_up=warm_up, before=before)[0]


def in_a_row_ms(run: Callable[[], Any], device: torch.device, *, repeats: int) -> float:
    """Milliseconds of each of as many in a row, each prepared while the one before it runs, from an idle device to an
    idle device."""
    started = perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (perf_counter() - started) / repeats * 1e3


def measure_in_turn(
    runs: Sequence[Callable[[], Any]],
    device: torch.device,
    *,
    repeats: int,
    warm_up: int = 3,
    before: Callable[[], Any] | None = None,
) -> list[Samples]:
    """`measure` for each, all of them in every round, so that a machine whose speed changes slows them all; in another
    order each time, since a GPU at its power limit is faster behind what draws less."""
    times: list[list[float]] = [[] for _ in runs]
    order = list(zip(runs, times, strict=True))
    shuffle = random.Random(0).shuffle
    gc.collect()
    for i in range(warm_up + repeats):
        shuffle(order)
        for run, own in order:
            if before is not None:
                before()
            synchronize(device)
            started = perf_counter()
            run()
            took = perf_counter() - started
            if i >= warm_up:
                own.append(took * 1e3)
    return [Samples(tuple(own)) for own in times]
