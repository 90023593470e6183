"""How long the device thread is kept waiting by a busy event loop. `xgr-stream bench wakeup` prints the figure."""

from __future__ import annotations

import numpy as np

from xgr_stream.cli.benches.wakeup import measure

SAMPLES = 200
ROUNDS = 6
P50_MS, P99_MS = 2.0, 20.0
"""Of the loop's CPU time between hand-over and start. Python's default switch interval gives 100 ms to seconds. Other
processes, and tests beside this one, keep the device thread itself off its core for time slices of 3 to 8 ms, so the
best of several rounds counts: noise only lengthens one."""


def test_the_device_thread_is_woken_in_time_with_the_loop_saturated() -> None:
    rounds: list[tuple[float, float]] = []
    while len(rounds) < ROUNDS and not any(p50 < P50_MS and p99 < P99_MS for p50, p99 in rounds):
        p50, p99 = np.percentile([delay.cpu_ms for delay in measure(SAMPLES).begun], (50, 99)).tolist()
        rounds.append((p50, p99))
    print("P50 and P99 of each round:", *(f"{p50:.2f} and {p99:.2f} ms" for p50, p99 in rounds))
    assert any(p50 < P50_MS and p99 < P99_MS for p50, p99 in rounds), f"P50 and P99 in ms of {ROUNDS} rounds: {rounds}"
