"""How long work takes on the GPU, for the benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch


def graph_ms(work: Callable[[], object], *, replays: int = 20) -> tuple[float, float]:
    """Milliseconds of one replay of `work` captured as a CUDA graph: the median, and the spread between quartiles."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    quartiles = statistics.quantiles(times, n=4)
    return statistics.median(times), quartiles[2] - quartiles[0]
