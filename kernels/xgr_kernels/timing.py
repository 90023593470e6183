"""How long work takes on the GPU, and what a benchmark of an op is.

The module `bench` of each op's folder offers

    check() -> None                     raises `WrongResult` unless the kernel equals the reference on the GPU
    run() -> Iterator[Timing]           the cases, timed one by one
    baselines() -> Iterator[Timing]     optional: what else does the same work, a library's call

and `report("<op>", check, run)` under `if __name__ == "__main__"`. `xgr-stream bench kernels` calls the same functions,
and times nothing where `check` has raised.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch


class WrongResult(Exception):
    """A kernel does not compute what its reference does; it must not be timed."""


class Timing(NamedTuple):
    """One case of an op. A plain tuple of these three will do."""

    case: str
    median_ms: float
    spread_ms: float
    """Between the quartiles."""


def require(op: str, wrong: float, most: float) -> None:
    """Raise `WrongResult` unless an error is at most `most`; a NaN is not."""
    if not wrong <= most:
        raise WrongResult(f"{op} is wrong: error {wrong:.3g}, at most {most:g} is allowed; it is not timed")


Cases = Callable[[], Iterable[tuple[str, float, float]]]


def report(op: str, check: Callable[[], None], *runs: Cases) -> None:
    """Check, then print each case's time: the main program of a benchmark. Exits with the reason if it is wrong."""
    try:
        check()
    except WrongResult as error:
        raise SystemExit(str(error)) from error
    for run in runs:
        for case, median_ms, spread_ms in run():
            print(f"{op}, {case}: {median_ms:.4f} ms (± {spread_ms:.4f})", flush=True)


def graph_ms(work: Callable[[], object], *, replays: int = 20) -> tuple[float, float]:
    """Milliseconds of one replay of `work` captured as a CUDA graph: the median, and the spread between quartiles."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which may still be writing what `work` reads
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return launched_ms(graph.replay, repeats=replays)


def launched_ms(work: Callable[[], object], *, repeats: int = 20) -> tuple[float, float]:
    """The same for work as it is launched: long enough, or one launch, that the host does not show. (In a graph, a copy
    of 2 GiB ran at 2.6 TB/s on an H200 that copies at 4.2.)"""
    times = []
    for _ in range(3 + repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    quartiles = statistics.quantiles(times[3:], n=4)
    return statistics.median(times[3:]), quartiles[2] - quartiles[0]
