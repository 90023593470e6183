"""Captured CUDA graphs, one for each shape of a step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch

from xgr_stream.collector import collector_resting
from xgr_stream.engine.graph_cache import GraphCache
from xgr_stream.engine.lanes import Gates, Lane

logger = logging.getLogger(__name__)

_Variant = TypeVar("_Variant")

TIMED_REPLAYS = 5
"""Of each variant, when there is a choice."""


class Graphs:
    """Graphs of one kind of step on one lane. They never run at the same time, so they share one memory pool; what must
    outlive a replay is to be written to memory of its own."""

    def __init__(self, lane: Lane, cache: GraphCache, gates: Gates | None = None) -> None:
        """`cache` keeps them. With `gates`, graphs begin before what the lane expects is there, and wait for each layer
        where they need it; else they wait for all of it before."""
        self._lane = lane
        self._cache = cache
        self._gates = gates
        self._kind = object()

    def run(self, key: Hashable, step: Callable[[_Variant], None], variants: Sequence[_Variant]) -> None:
        """Do what `step` does with each of `variants`, by replaying a graph: captured, when the key is new, from the
        fastest of those that fit on the device. It must not depend on anything but the key and the content of memory
        that it reads at fixed addresses, and may run more than once. The lane is to be the current one."""
        gates = self._opened()
        key = key, gates is not None
        graph = self._cache.get(self._kind, key)
        if graph is None:
            calls = _fitting([partial(step, variant) for variant in variants])
            torch.cuda.synchronize()
            graph = self._cache.keep(self._kind, key, lambda: self._fastest(key, calls, gates))
        graph.replay()
        if gates is not None:
            gates.close_behind(self._lane.mark())

    def clear(self) -> None:
        """Forget all graphs: memory that they read has moved."""
        self._cache.clear(self._kind)

    def _opened(self) -> Gates | None:
        """The gates, if there is something to wait for at them."""
        gates, lane = self._gates, self._lane
        if gates is None or not lane.expects or not gates.are_passed:
            lane.await_layers()
            return None
        gates.open_with(lane.take_expected())
        return gates

    def _fastest(
        self, key: Hashable, variants: Sequence[Callable[[], None]], gates: Gates | None
    ) -> torch.cuda.CUDAGraph:
        started = perf_counter()
        graphs = self._captured(variants, gates)
        times = self._times_ms(graphs) if len(graphs) > 1 else [0.0]
        best = times.index(min(times))
        logger.info(
            "captured %s in %.2f s: variant %d of %s ms",
            key,
            perf_counter() - started,
            best,
            [round(t, 3) for t in times],
        )
        return graphs[best]

    def _captured(self, variants: Sequence[Callable[[], None]], gates: Gates | None) -> list[torch.cuda.CUDAGraph]:
        """A graph of each, which has run once."""
        graphs: list[torch.cuda.CUDAGraph] = []
        for variant in variants:
            graph = torch.cuda.CUDAGraph()
            other = graphs[0] if graphs else self._cache.any_of(self._kind)
            captured = capturing(graph, self._lane.stream, pool=None if other is None else other.pool())
            with captured, nullcontext() if gates is None else self._lane.through(gates):
                variant()
            graph.replay()
            graphs.append(graph)
        return graphs

    def _times_ms(self, graphs: Sequence[torch.cuda.CUDAGraph]) -> list[float]:
        """The median of each, replayed in turn: a card slows down as it warms up, and the first would seem the best."""
        rounds = [[self._replay_ms(graph) for graph in graphs] for _ in range(1 + TIMED_REPLAYS)]
        return [median(times) for times in zip(*rounds[1:], strict=True)]

    def _replay_ms(self, graph: torch.cuda.CUDAGraph) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None, pool: Any = None) -> Iterator[None]:
    """What this thread gives the stream within is captured; other threads may use the device meanwhile, and destroy
    graphs. This one must not, or the capture breaks off: those among its garbage stay until the end."""
    with collector_resting(), torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        yield


def _fitting(calls: Sequence[Callable[[], None]]) -> list[Callable[[], None]]:
    """Those whose kernels the device has room for, one at least, each of which has run once: that compiles kernels and
    lets libraries set themselves up, which a capture forbids."""
    fitting: list[Callable[[], None]] = []
    for number, call in enumerate(calls):
        try:
            call()
        except Exception as error:
            # By name: there need not be a Triton where nothing raises it.
            if type(error).__name__ != "OutOfResources" or (not fitting and call is calls[-1]):
                raise
            logger.info("variant %d does not fit on this device: %s", number, error)
        else:
            fitting.append(call)
    return fitting
