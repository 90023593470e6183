"""`xgr-stream bench wakeup`: how late the device thread is woken while the event loop computes all the time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from xgr_stream.cli.benches.options import Output, output_options
from xgr_stream.cli.benches.report import environment, start
from xgr_stream.config import EngineConfig
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.promise import Promise
from xgr_stream.scheduler.timer_slack import PATIENT_NS, set_timer_slack
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.types import RecommendRequest

BUSY_S = 0.003
UNTIL = ("the thread runs", "a decode begins")
COLUMNS = {
    "round": "round",
    "until": "until",
    "samples": "samples",
    "p50_ms": "P50 ms",
    "p99_ms": "P99 ms",
    "max_ms": "max ms",
    "cpu_p50_ms": "the loop's CPU meanwhile, P50 ms",
    "cpu_p99_ms": "P99 ms",
}


class Delay(NamedTuple):
    """From a hand-over to the device thread."""

    wall_ms: float
    cpu_ms: float
    """That the loop went on computing: the delay as it would be on cores that nobody else uses."""


class Delays(NamedTuple):
    """Of as many hand-overs each."""

    awake: list[Delay]
    """Until the thread runs."""
    begun: list[Delay]
    """Until it has begun a request's decode."""


@click.command()
@click.option("--samples", type=click.IntRange(10), default=500, show_default=True, help="Requests of each round.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@output_options
def wakeup(samples: int, rounds: int, output: Output) -> None:
    """Requests that a saturated event loop hands to the device thread: from a hand-over until the thread runs, and
    until it has taken a request, chosen a batch and called the engine. The loop computes in callbacks of up to 3 ms,
    one behind the other. Where other processes use the same cores, a loop that has the GIL may be off its core for
    milliseconds; how long it computed meanwhile leaves that out.
    """
    report = start("wakeup", COLUMNS, {"loop": "busy all the time", **environment(torch.device("cpu"))}, output)
    found = Delays([], [])
    for number in range(1, rounds + 1):
        delays = measure(samples)
        for until, own, every in zip(UNTIL, delays, found, strict=True):
            every += own
            report.add({"round": number, "until": until, "samples": samples, **_percentiles(own)})
    for until, every in zip(UNTIL, found, strict=True):
        report.add({"round": "all", "until": until, "samples": len(every), **_percentiles(every)})
    report.finish(output)


def measure(samples: int) -> Delays:
    """From `call` to what it calls and from `submit` to the engine's call, so many of each, one after the other."""
    engine = NullEngine()
    worker = DeviceWorker(engine, EngineConfig(), SystemClock(), Metrics())
    worker.start()
    before = set_timer_slack(PATIENT_NS)  # as a worker's runtime does
    try:
        return asyncio.run(_delays(worker, engine, samples))
    finally:
        worker.stop(5)
        if before is not None:
            set_timer_slack(before)


async def _delays(worker: DeviceWorker, engine: NullEngine, samples: int) -> Delays:
    loop = asyncio.get_running_loop()
    loop_cpu = time.pthread_getcpuclockid(threading.get_ident())

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.clock_gettime(loop_cpu)

    reached = now()

    def reach(*_: object) -> None:
        nonlocal reached
        reached = now()

    engine.before_answer = reach
    done = asyncio.Event()
    stopped = False

    def saturate() -> None:
        end = time.perf_counter() + BUSY_S
        while time.perf_counter() < end:
            sum(range(50))
        if not stopped:
            loop.call_soon(saturate)

    async def delay(hand_over: Callable[[], Future[Any] | Promise]) -> Delay:
        done.clear()
        begun = now()
        hand_over().add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        await done.wait()
        wall, cpu = ((after - before) * 1e3 for before, after in zip(begun, reached, strict=True))
        return Delay(wall, cpu)

    loop.call_soon(saturate)
    found = Delays([], [])
    for number in range(samples):
        found.awake.append(await delay(partial(worker.call, reach)))
        found.begun.append(await delay(partial(worker.submit, RecommendRequest(f"r{number}", "u"), None, None)))
    stopped = True
    return found


def _percentiles(delays: list[Delay]) -> dict[str, object]:
    (p50, cpu_p50), (p99, cpu_p99) = np.percentile(np.array(delays), (50, 99), axis=0).tolist()
    longest = max(delay.wall_ms for delay in delays)
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": longest, "cpu_p50_ms": cpu_p50, "cpu_p99_ms": cpu_p99}
