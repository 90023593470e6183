"""How many workers a load takes, from measured step times: each number of them is simulated.

One worker's device, as the scheduler (`xgr_stream.scheduler`) runs it, under requests that come at random (Poisson):

* Requests whose prefix is at hand go first: a batch of all that wait, up to the budget. It takes what `bench engine`
  measured; sizes in between lie on a line, as `costs.StepCosts` has it.
* A request appends all that its user has done since, in one go: it takes `pending_ms` in place of `warm_ms`, unless
  fewer events come than requests. Events are appended before that, too, in batches over users, while the device is
  idle; that is left out, since it costs requests nothing. Those that are due go before requests, for `APPEND_SHARE` of
  the device's time.
* A cold request is prefilled (`cold_ms` - `warm_ms`) in chunks, one prefill at a time: while no batch waits, and behind
  each batch for `SHARE` of its time, or one chunk. After `PATIENCE` nobody goes before the rest of it. Then it is
  decoded. Where prefills are whole (on a CPU), it is one of the batch.

Requests are spread evenly over the workers. The host is left out: half a millisecond of a request, and a core at some
15,000 events and 1,500 requests a second. On a CPU the model has the same cores, and batches take several times as long
as alone.

To measure step times once, and to simulate what they allow, is Hercules' way (Ke et al., HPCA 2022). What this says of
loads that were measured: docs/performance.md, "Planning".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xgr_stream.errors import ConfigError
from xgr_stream.scheduler.policy import AGEING_S, APPEND_SHARE
from xgr_stream.scheduler.prefill import PATIENCE, SHARE

MAX_WORKERS = 10_000
REQUESTS = 20_000
"""That are simulated: 200 of them are beyond P99, which moves by 3 % from seed to seed then."""
SAME = 1.03
"""What two of them may differ by and count as equal."""
CHUNKED = 1.1
"""What a prefill takes in chunks, of what it takes whole (`prefill.OTHERS_S`)."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the device takes for what a load is made of."""

    batch_ms: tuple[float, ...]
    """Of 1, 2, ... requests: warm ones, with what they have to append."""
    append_ms: float = 0.0
    """Of one user's events, however many."""
    most_appends_per_s: float = math.inf
    """Users, in batches, by a device that does nothing else."""
    prefill_ms: float = 0.0
    chunks: int = 1
    """Of a prefill; 1: it is whole."""


@dataclass(frozen=True, slots=True)
class Load:
    """What comes in, over all workers. `cold`: the fraction of requests whose user has no prefix cached."""

    requests_per_s: float
    events_per_s: float = 0.0
    cold: float = 0.0

    def __post_init__(self) -> None:
        rates = 0 < self.requests_per_s < math.inf and 0 <= self.events_per_s < math.inf
        if not rates or not 0 <= self.cold <= 1:
            raise ConfigError(f"requests_per_s must be above 0, events_per_s at least 0, cold from 0 to 1, not {self}")


@dataclass(frozen=True, slots=True)
class Latency:
    """Of a request, from its arrival to the end of its batch."""

    p50_ms: float
    p99_ms: float
    ready_p99_ms: float
    """Of those that are not cold; NaN if there are none."""
    utilisation: float
    """Of the device."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`workers` of them, each with at most `batch` requests in a step."""

    workers: int
    batch: int
    latency: Latency
    ahead_per_s: float
    """Users that all devices have time to append to before a request of theirs comes, at least."""


def costs_of(rows: Sequence[Mapping[str, object]], load: Load, chunk_tokens: int) -> Costs:
    """What this load takes, by the rows of `xgr-stream bench engine --json`, of one context and beam width, with
    prefills in chunks of so many tokens (0: whole). Raises `ConfigError`."""
    rows = sorted(rows, key=lambda row: _positive(row, "batch"))
    settings = sorted({(_positive(row, "context"), _positive(row, "beam")) for row in rows})
    if len(settings) != 1:
        listed = ", ".join(map(str, settings))
        raise ConfigError(f"rows must be of one (context, beam), not of {listed}: choose with --context and --beam")
    batches = [_positive(row, "batch") for row in rows]
    warm = [_ms(row, "warm_ms", "without --only cold") for row in rows]
    append_ms, most_appends_per_s, pending = 0.0, math.inf, warm
    if load.events_per_s:
        pending = [_ms(row, "pending_ms", "with --pending N, N the tokens of an event") for row in rows]
        append_ms = max(0.0, pending[0] - warm[0]) / batches[0]
        most = max(0.0, pending[-1] - warm[-1])
        most_appends_per_s = batches[-1] / most * 1000 if most else math.inf
    appending = min(1.0, load.events_per_s / load.requests_per_s)
    measured = [warm_ms + appending * (ms - warm_ms) for warm_ms, ms in zip(warm, pending, strict=True)]
    batch_ms = np.interp(range(1, batches[-1] + 1), batches, measured).tolist()
    prefill_ms, chunks = 0.0, 1
    if load.cold:
        cold_ms = _ms(rows[0], "cold_ms", "without --only warm (or plan with --cold 0)")
        prefill_ms = max(0.0, cold_ms - warm[0]) / batches[0]
        if chunk_tokens and load.cold < 1:  # they are whole while none of another kind comes
            chunks = math.ceil(settings[0][0] / chunk_tokens)
            prefill_ms *= CHUNKED if chunks > 1 else 1.0
    return Costs(tuple(batch_ms), append_ms, most_appends_per_s, prefill_ms, chunks)


def _positive(row: Mapping[str, object], name: str) -> int:
    value = row.get(name)
    if type(value) is not int or value < 1:
        raise ConfigError(
            f"{name} of each row must be an integer of at least 1, not {value!r}: `xgr-stream bench engine` writes it "
            "with --shape or --context"
        )
    return value


def _ms(row: Mapping[str, object], name: str, how: str) -> float:
    """The median. `how`: the options with which it is measured."""
    value = row.get(name)
    if value is None:
        raise ConfigError(
            f"each row must have {name}, and that of batch {row['batch']} has none: run `xgr-stream bench engine` "
            f"again as it was, but {how}"
        )
    median = value.get("median") if isinstance(value, Mapping) else value
    if isinstance(median, bool) or not isinstance(median, int | float) or not 0 < median < math.inf:
        raise ConfigError(f"{name} of each row must be milliseconds above 0, or have a median of them, not {value!r}")
    return float(median)


def simulated(costs: Costs, load: Load, workers: int, batch: int) -> Latency:
    """Requests of one worker, of batches of at most `batch`; infinite where the queue would only grow."""
    append_gap_ms = math.inf
    if load.events_per_s and costs.append_ms:
        append_gap_ms = max(costs.append_ms / APPEND_SHARE, 1000 * workers / load.events_per_s)
    request_ms = costs.batch_ms[batch - 1] / batch + load.cold * costs.prefill_ms
    least = load.requests_per_s / workers / 1000 * request_ms + costs.append_ms / append_gap_ms
    if least >= 1:
        return Latency(math.inf, math.inf, math.inf, least)
    random = np.random.default_rng(0)
    arrivals = (random.exponential(1000 * workers / load.requests_per_s, REQUESTS).cumsum()).tolist()
    is_cold = random.uniform(size=REQUESTS) < load.cold
    ends, busy_ms = _ends(costs, arrivals, is_cold.tolist(), batch, append_gap_ms)
    took = np.array(ends) - arrivals
    p50, p99 = np.percentile(took, (50, 99)).tolist()
    ready = took[~is_cold]
    return Latency(p50, p99, float(np.percentile(ready, 99)) if len(ready) else math.nan, busy_ms / max(ends))


def _ends(
    costs: Costs, arrivals: list[float], is_cold: list[bool], batch: int, append_gap_ms: float
) -> tuple[list[float], float]:
    """(when each request's batch ends, how long the device is busy), in ms from the start."""
    ends = [0.0] * len(arrivals)
    ready: deque[int] = deque()
    prefills: deque[int] = deque()
    left_ms = costs.prefill_ms
    now = busy_ms = 0.0
    append_at = append_gap_ms
    come = answered = 0
    while answered < len(arrivals):
        while come < len(arrivals) and arrivals[come] <= now:
            (prefills if is_cold[come] and costs.chunks > 1 else ready).append(come)
            come += 1
        if not ready and not prefills:
            now = arrivals[come]
            continue
        began = now
        if now >= append_at:
            now += costs.append_ms
            append_at = now + append_gap_ms
        chunks_ms = 0.0
        overdue = prefills and now > arrivals[prefills[0]] + PATIENCE * AGEING_S * 1000
        if overdue:
            chunks_ms = left_ms
        elif ready:
            asked = [ready.popleft() for _ in range(min(batch, len(ready)))]
            step_ms = costs.batch_ms[len(asked) - 1]
            if costs.chunks == 1:
                step_ms += costs.prefill_ms * sum(is_cold[request] for request in asked)
            now += step_ms
            for request in asked:
                ends[request] = now
            answered += len(asked)
            chunks_ms = SHARE * step_ms
        if prefills:
            chunk_ms = costs.prefill_ms / costs.chunks
            took_ms = min(left_ms, chunk_ms * max(1, chunks_ms // chunk_ms))
            now += took_ms
            left_ms -= took_ms
            if left_ms <= 1e-9:
                left_ms = costs.prefill_ms
                ready.appendleft(prefills.popleft())  # the one that came first, so the one that is due first
        busy_ms += now - began
    return ends, busy_ms


def plan(costs: Costs, load: Load, target_ms: float) -> Plan:
    """The fewest workers that keep P99 within the target, with the largest batches that give the lowest P99. Raises
    `ConfigError` if no number of workers does."""
    idle_ms = costs.batch_ms[0] + (costs.prefill_ms if load.cold > 0.01 else 0.0)
    if idle_ms > target_ms:
        raise ConfigError(
            f"p99_ms must be at least {idle_ms:.1f}, which a request takes on an idle device, not {target_ms:g}"
        )
    largest = len(costs.batch_ms)

    def suffices(workers: int) -> bool:
        return simulated(costs, load, workers, largest).p99_ms <= target_ms

    too_few, enough = 0, 1
    while not suffices(enough):
        if enough == MAX_WORKERS:
            raise ConfigError(f"{load} is more than {MAX_WORKERS:,} workers answer within {target_ms:g} ms")
        too_few, enough = enough, min(2 * enough, MAX_WORKERS)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    doublings = [1 << power for power in range((largest - 1).bit_length())]
    found = {batch: simulated(costs, load, enough, batch) for batch in (*doublings, largest)}
    lowest_ms = min(latency.p99_ms for latency in found.values())
    batch, latency = max(
        (item for item in found.items() if item[1].p99_ms <= SAME * lowest_ms), key=lambda item: item[0]
    )
    return Plan(enough, batch, latency, enough * (1 - latency.utilisation) * costs.most_appends_per_s)
