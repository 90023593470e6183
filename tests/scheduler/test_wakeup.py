"""How long the device thread is kept waiting by a busy event loop. `xgr-stream bench wakeup` prints the figure."""

from __future__ import annotations

import numpy as np

from xgr_stream.cli.benches.wakeup import measure

SAMPLES = 200
ROUNDS = 6
P99_MS = 5.0
"""Python's default switch interval gives seconds. On a machine of one's own it is below 1.5 ms; other processes of a
shared one add a time slice (3 to 8 ms seen), so the best of several rounds counts: noise can only lengthen one."""


def test_the_device_thread_is_woken_in_time_with_the_loop_saturated() -> None:
    rounds: list[float] = []
    while len(rounds) < ROUNDS and not any(p99 < P99_MS for p99 in rounds):
        rounds.append(float(np.percentile(measure(SAMPLES), 99)))
    print("P99 of each round:", *(f"{p99:.2f} ms" for p99 in rounds))
    assert min(rounds) < P99_MS, f"P99 {min(rounds):.2f} ms in the best of {ROUNDS} rounds"
