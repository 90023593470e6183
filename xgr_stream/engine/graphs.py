"""Captured CUDA graphs, one for each shape of a step, the least recently used dropped."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from time import perf_counter

import torch

from xgr_stream.engine.lanes import Lane

logger = logging.getLogger(__name__)

MAX_GRAPHS = 64
"""Kept per kind of step: a graph of 28 layers takes a few MB besides the memory that all of them share."""


class Graphs:
    """Graphs of one lane. They never run at the same time, so they share one memory pool; what must outlive a replay
    is to be written to memory of its own."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._graphs: OrderedDict[Hashable, torch.cuda.CUDAGraph] = OrderedDict()
        self._pool: tuple[int, int] | None = None

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Do what `step` does: by a replay, captured from it when the key is new. It must not depend on anything but
        the key and the content of memory that it reads at fixed addresses."""
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._capture(key, step)
        else:
            self._graphs.move_to_end(key)
        with self._lane.current():
            graph.replay()

    def clear(self) -> None:
        """Forget all graphs: memory that they read has moved."""
        if self._graphs:
            torch.cuda.synchronize()
            self._graphs.clear()

    def _capture(self, key: Hashable, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        started = perf_counter()
        with self._lane.current():
            step()  # compiles kernels and lets libraries set themselves up, which a capture forbids
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._lane.stream, capture_error_mode="thread_local"):
            step()
        self._pool = self._pool or graph.pool()
        self._graphs[key] = graph
        if len(self._graphs) > MAX_GRAPHS:
            torch.cuda.synchronize()  # the dropped one may still be running
            self._graphs.popitem(last=False)
        logger.info("captured a graph for %s in %.2f s", key, perf_counter() - started)
        return graph
