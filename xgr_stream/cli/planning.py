"""How many workers a load takes, from measured step times.

A worker's device runs one batch after another. A request waits for those before it, then for its own batch. With step
times of mean S and squared coefficient of variation c², at a utilisation ρ, requests coming at random, the time before
the step begins has the tail of an M/G/1 queue in heavy traffic (Kingman 1962; the exponential is exact for M/M/1, and
its mean is Pollaczek and Khinchine's):

    P(wait > t) = ρ · exp(-t · 2 (1 - ρ) / (S (1 + c²)))
    P99 = S₁ + max(0, S (1 + c²) / (2 (1 - ρ)) · ln(ρ / 0.01))

S₁, the request's own step, is a cold one if more than 1 % of the requests are. Appends take their share of the device:
they are in ρ and in S, not in S₁. Profiling step times once and searching over what they allow is Hercules' way (Ke et
al., HPCA 2022); what stands here for its simulator is the formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xgr_stream.errors import ConfigError

MAX_WORKERS = 10_000
TAIL = 0.01


@dataclass(frozen=True, slots=True)
class Step:
    """A batch of requests: how long it takes when all are warm and none has anything to append; what a cold one of
    them takes on top; what an event that is appended takes."""

    batch: int
    warm_ms: float
    cold_ms: float = 0.0
    append_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What comes in, over all workers. `cold`: the fraction of requests whose user has no prefix cached."""

    requests_per_s: float
    events_per_s: float = 0.0
    cold: float = 0.0

    def __post_init__(self) -> None:
        if not self.requests_per_s > 0 or self.events_per_s < 0 or not 0 <= self.cold <= 1:
            raise ConfigError(f"requests_per_s must be above 0, events_per_s at least 0, cold from 0 to 1, not {self}")


@dataclass(frozen=True, slots=True)
class Plan:
    """`workers` of them, each with at most `batch` requests in a step."""

    workers: int
    batch: int
    utilisation: float
    p99_ms: float


def steps_of(rows: Sequence[Mapping[str, object]]) -> list[Step]:
    """The step times in the rows of `xgr-stream bench engine --json`. Raises `ConfigError`."""
    settings = {(row.get("context"), row.get("beam")) for row in rows}
    if len(settings) != 1:
        raise ConfigError(f"rows must be of one context and one beam width, not of {len(settings)}: choose them")
    steps = []
    for row in rows:
        batch, warm = row.get("batch"), _ms(row.get("warm_ms"))
        if type(batch) is not int or batch < 1 or warm is None:
            raise ConfigError(f"each row must have a batch and its warm_ms, not {dict(row)!r:.200}")
        cold, pending = _ms(row.get("cold_ms")), _ms(row.get("pending_ms"))
        steps.append(
            Step(
                batch,
                warm,
                0.0 if cold is None else max(0.0, cold - warm) / batch,
                0.0 if pending is None else max(0.0, pending - warm) / batch,
            )
        )
    return sorted(steps, key=lambda step: step.batch)


def _ms(value: object) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("median")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def p99_ms(step: Step, load: Load, workers: int) -> tuple[float, float]:
    """(P99 of a request, utilisation) with full batches of this size; infinite where the queue would only grow."""
    cold_ms = step.batch * load.cold * step.cold_ms
    events_per_request = load.events_per_s / load.requests_per_s
    mean_ms = step.warm_ms + cold_ms + step.batch * events_per_request * step.append_ms
    utilisation = load.requests_per_s / workers / step.batch * mean_ms / 1000
    if utilisation >= 1:
        return math.inf, utilisation
    variance = step.batch * load.cold * (1 - load.cold) * step.cold_ms**2
    own_ms = step.warm_ms + (max(step.cold_ms, cold_ms) if load.cold > TAIL else cold_ms)
    scale_ms = mean_ms * (1 + variance / mean_ms**2) / (2 * (1 - utilisation))
    return own_ms + max(0.0, scale_ms * math.log(utilisation / TAIL)) if utilisation > 0 else own_ms, utilisation


def plan(steps: Sequence[Step], load: Load, target_ms: float) -> Plan:
    """The fewest workers that keep P99 within the target, and of those the batch with the lowest P99. Raises
    `ConfigError` if no number of workers does."""
    idle_ms = min(p99_ms(step, load, MAX_WORKERS)[0] for step in steps)
    if idle_ms > target_ms:
        raise ConfigError(
            f"p99_ms must be at least {idle_ms:.1f}, which a request takes on an idle device, not {target_ms:g}"
        )
    low, high = 1, MAX_WORKERS
    while low < high:
        middle = (low + high) // 2
        if min(p99_ms(step, load, middle)[0] for step in steps) <= target_ms:
            high = middle
        else:
            low = middle + 1
    best = min(steps, key=lambda step: p99_ms(step, load, low)[0])
    found_ms, utilisation = p99_ms(best, load, low)
    return Plan(low, best.batch, utilisation, found_ms)
