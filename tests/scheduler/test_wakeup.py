"""How long the device thread is kept waiting by a busy event loop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future

import numpy as np

from xgr_stream.config import EngineConfig
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.types import RecommendRequest, RecommendResponse

SAMPLES = 200
ROUNDS = 6
P99_S = 0.005
"""Python's default switch interval gives seconds. Other processes of a shared machine add a time slice (3 to 8 ms
seen), so the best of several rounds counts: noise can only lengthen one."""


def busy_until(end: float) -> None:
    while time.perf_counter() < end:
        sum(range(50))


async def delays(worker: DeviceWorker, engine: NullEngine) -> list[float]:
    """Submit to decode, with the loop computing all the time in callbacks of up to 3 ms."""
    loop = asyncio.get_running_loop()
    started: list[float] = []
    engine.before_answer = lambda _: started.append(time.perf_counter())
    stopped = False

    def saturate() -> None:
        busy_until(time.perf_counter() + 0.003)
        if not stopped:
            loop.call_soon(saturate)

    loop.call_soon(saturate)
    found: list[float] = []
    for i in range(SAMPLES):
        submitted = time.perf_counter()
        future: Future[RecommendResponse] = worker.submit(RecommendRequest(f"r{i}", "u"), None, None)
        await asyncio.wrap_future(future)
        found.append(started[-1] - submitted)
    stopped = True
    return found


def test_the_device_thread_is_woken_in_time_with_the_loop_saturated() -> None:
    engine = NullEngine()
    worker = DeviceWorker(engine, EngineConfig(), SystemClock(), Metrics())
    worker.start()
    best = float("inf")
    try:
        for _ in range(ROUNDS):
            best = min(best, float(np.percentile(asyncio.run(delays(worker, engine)), 99)))
            if best < P99_S:
                break
    finally:
        worker.stop(5)
    assert best < P99_S, f"P99 {best * 1e3:.2f} ms in the best of {ROUNDS} rounds"
