"""`xgr-stream bench wakeup`: how late the device thread is woken while the event loop computes all the time."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future

import click
import numpy as np
import torch

from xgr_stream.cli.benches.options import Output, output_options
from xgr_stream.cli.benches.report import environment, start
from xgr_stream.config import EngineConfig
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.types import RecommendRequest, RecommendResponse

BUSY_S = 0.003
COLUMNS = {"round": "round", "samples": "samples", "p50_ms": "P50 ms", "p99_ms": "P99 ms", "max_ms": "max ms"}


@click.command()
@click.option("--samples", type=click.IntRange(10), default=500, show_default=True, help="Requests of each round.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@output_options
def wakeup(samples: int, rounds: int, output: Output) -> None:
    """Requests that a saturated event loop hands to the device thread: from the hand-over to the start of their
    decode. The loop computes in callbacks of up to 3 ms, one behind the other."""
    report = start("wakeup", COLUMNS, {"loop": "busy all the time", **environment(torch.device("cpu"))}, output)
    found: list[float] = []
    for number in range(1, rounds + 1):
        delays_ms = measure(samples)
        found += delays_ms
        report.add({"round": number, "samples": samples, **_percentiles(delays_ms)})
    report.add({"round": "all", "samples": len(found), **_percentiles(found)})
    report.finish(output)


def measure(samples: int) -> list[float]:
    """Milliseconds from `submit` to the engine's call, of so many requests, one after the other."""
    engine = NullEngine()
    worker = DeviceWorker(engine, EngineConfig(), SystemClock(), Metrics())
    worker.start()
    try:
        return asyncio.run(_delays_ms(worker, engine, samples))
    finally:
        worker.stop(5)


async def _delays_ms(worker: DeviceWorker, engine: NullEngine, samples: int) -> list[float]:
    loop = asyncio.get_running_loop()
    started: list[float] = []
    engine.before_answer = lambda _: started.append(time.perf_counter())
    stopped = False

    def saturate() -> None:
        end = time.perf_counter() + BUSY_S
        while time.perf_counter() < end:
            sum(range(50))
        if not stopped:
            loop.call_soon(saturate)

    loop.call_soon(saturate)
    found: list[float] = []
    for number in range(samples):
        submitted = time.perf_counter()
        future: Future[RecommendResponse] = worker.submit(RecommendRequest(f"r{number}", "u"), None, None)
        await asyncio.wrap_future(future)
        found.append((started[-1] - submitted) * 1e3)
    stopped = True
    return found


def _percentiles(delays_ms: list[float]) -> dict[str, object]:
    p50, p99 = (float(p) for p in np.percentile(delays_ms, (50, 99)))
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": max(delays_ms)}
