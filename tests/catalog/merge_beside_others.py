"""How long a merge keeps all other threads from running: `python tests/catalog/merge_beside_others.py [items] [new]`.

Merges new semantic IDs into a random catalog (20 million and 100,000 by default) beside a thread that wakes up every
0.2 ms, and prints one line of JSON: what the merge took, and the longest times between two wake-ups: on the clock, and
held by the merge. That is the merging thread's CPU time, but no more than what is left of the clock's without the time
that the other thread waited for a core (Linux's schedstat): on a machine that is shared nothing else tells a merge that
holds the GIL from a program that has the core.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xgr_stream.catalog import LiveCatalog, Merge
from xgr_stream.scheduler.switch_interval import restore_switch_interval, shorten_switch_interval
from xgr_stream.testing.shapes import random_catalog
from xgr_stream.types import CatalogUpdate

APART_S = 2e-4


@dataclass
class Longest:
    """Between two wake-ups, in milliseconds."""

    clock_ms: float = 0.0
    held_ms: float = 0.0


def watch(thread: int, longest: Longest, ended: threading.Event) -> None:
    """Wake up again and again, until `ended`."""
    cpu = time.pthread_getcpuclockid(thread)
    with Path("/proc/thread-self/schedstat").open("rb", buffering=0) as own:

        def now() -> tuple[float, float, float]:
            waited_ns = int(os.pread(own.fileno(), 100, 0).split()[1])
            return time.perf_counter() * 1e3, time.clock_gettime(cpu) * 1e3, waited_ns / 1e6

        before = now()
        while not ended.is_set():
            time.sleep(APART_S)
            current = now()
            clock, computed, waited = (after - then for after, then in zip(current, before, strict=True))
            longest.clock_ms = max(longest.clock_ms, clock)
            longest.held_ms = max(longest.held_ms, min(computed, clock - waited - APART_S * 1e3))
            before = current


def merges(items: int, new: int, times: int, codes: int = 8192) -> Iterator[tuple[float, Longest]]:
    """Seconds of each of so many merges of the same into the same, and what it was to others."""
    live = LiveCatalog(random_catalog((codes,) * 3, items, tags=100))
    sids = np.random.default_rng(1).integers(0, codes, (new, 3)).tolist()
    live.apply([CatalogUpdate(f"new-{i}", tuple(sid), ("tag-3",)) for i, sid in enumerate(sids)], new)
    begun = live.begin()
    assert begun is not None
    gc.collect()
    gc.freeze()
    shorten_switch_interval()
    try:
        for _ in range(times):
            merge = Merge(live.base, live.catalog, begun.changes, begun.position, 0)
            longest, ended = Longest(), threading.Event()
            watching = threading.Thread(target=watch, args=(threading.get_ident(), longest, ended))
            watching.start()
            started = time.perf_counter()
            merge.run()
            seconds = time.perf_counter() - started
            ended.set()
            watching.join()
            yield seconds, longest
    finally:
        restore_switch_interval()
        gc.unfreeze()


def main(items: int = 20_000_000, new: int = 100_000) -> None:
    found = list(merges(items, new, 3))
    figures = {"items": items, "new": new, "merge_s": [round(seconds, 2) for seconds, _ in found]}
    longest = {
        "clock_ms": [round(own.clock_ms, 1) for _, own in found],
        "held_ms": [round(own.held_ms, 1) for _, own in found],
    }
    print(json.dumps(figures | longest))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
