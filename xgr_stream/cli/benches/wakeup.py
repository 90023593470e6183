"""`xgr-stream bench wakeup`: how late the device thread is woken while the event loop computes all the time."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import NamedTuple

import click
import numpy as np
import torch

from xgr_stream.cli.benches.options import Output, output_options
from xgr_stream.cli.benches.report import environment, start
from xgr_stream.config import EngineConfig
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.timer_slack import PATIENT_NS, set_timer_slack
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.types import RecommendRequest

BUSY_S = 0.003
COLUMNS = {
    "round": "round",
    "samples": "samples",
    "p50_ms": "P50 ms",
    "p99_ms": "P99 ms",
    "max_ms": "max ms",
    "cpu_p50_ms": "the loop's CPU meanwhile, P50 ms",
    "cpu_p99_ms": "P99 ms",
}


class Delay(NamedTuple):
    """From a hand-over to the start of its decode."""

    wall_ms: float
    cpu_ms: float
    """That the loop went on computing: the delay as it would be on cores that nobody else uses."""


@click.command()
@click.option("--samples", type=click.IntRange(10), default=500, show_default=True, help="Requests of each round.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@output_options
def wakeup(samples: int, rounds: int, output: Output) -> None:
    """Requests that a saturated event loop hands to the device thread: from the hand-over to the start of their
    decode. The loop computes in callbacks of up to 3 ms, one behind the other. Where other processes use the same
    cores, a loop that has the GIL may be off its core for milliseconds; how long it computed meanwhile leaves that out.
    """
    report = start("wakeup", COLUMNS, {"loop": "busy all the time", **environment(torch.device("cpu"))}, output)
    found: list[Delay] = []
    for number in range(1, rounds + 1):
        delays = measure(samples)
        found += delays
        report.add({"round": number, "samples": samples, **_percentiles(delays)})
    report.add({"round": "all", "samples": len(found), **_percentiles(found)})
    report.finish(output)


def measure(samples: int) -> list[Delay]:
    """From `submit` to the engine's call, of so many requests, one after the other."""
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


async def _delays(worker: DeviceWorker, engine: NullEngine, samples: int) -> list[Delay]:
    loop = asyncio.get_running_loop()
    loop_cpu = time.pthread_getcpuclockid(threading.get_ident())
    started: list[tuple[float, float]] = []
    engine.before_answer = lambda _: started.append((time.perf_counter(), time.clock_gettime(loop_cpu)))
    answered = asyncio.Event()
    stopped = False

    def saturate() -> None:
        end = time.perf_counter() + BUSY_S
        while time.perf_counter() < end:
            sum(range(50))
        if not stopped:
            loop.call_soon(saturate)

    loop.call_soon(saturate)
    found: list[Delay] = []
    for number in range(samples):
        submitted, cpu = time.perf_counter(), time.clock_gettime(loop_cpu)
        answered.clear()
        promise = worker.submit(RecommendRequest(f"r{number}", "u"), None, None)
        promise.add_done_callback(lambda _: loop.call_soon_threadsafe(answered.set))
        await answered.wait()
        found.append(Delay((started[-1][0] - submitted) * 1e3, (started[-1][1] - cpu) * 1e3))
    stopped = True
    return found


def _percentiles(delays: list[Delay]) -> dict[str, object]:
    (p50, cpu_p50), (p99, cpu_p99) = np.percentile(np.array(delays), (50, 99), axis=0).tolist()
    longest = max(delay.wall_ms for delay in delays)
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": longest, "cpu_p50_ms": cpu_p50, "cpu_p99_ms": cpu_p99}
