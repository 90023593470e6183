"""`xgr-stream bench kernels`: each op's result checked on the card, then timed."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from itertools import chain
from types import ModuleType

import click
import torch

import xgr_kernels
from xgr_kernels.timing import WrongResult
from xgr_stream.cli.benches.options import Output, output_options
from xgr_stream.cli.benches.plots import Plot
from xgr_stream.cli.benches.report import Report, environment, start
from xgr_stream.errors import ConfigError

COLUMNS = {"op": "op", "case": "case", "median_ms": "ms", "spread_ms": "between quartiles"}


@click.command()
@click.option("--op", "only", multiple=True, help="Time this op alone. May be given several times.  [default: all]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random data.")
@output_options
def kernels(only: tuple[str, ...], seed: int, output: Output) -> None:
    """Time each kernel on its cases, after a check that it computes what its reference does.

    A kernel whose check fails is not timed, and the run fails. Needs CUDA. Times are medians of replays of a graph;
    each op's bench.py says what one replay holds.
    """
    ops = ops_with_bench()
    unknown = set(only) - set(ops)
    if unknown:
        raise ConfigError(f"--op must be one of {', '.join(ops)}, not {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        raise ConfigError("bench kernels needs CUDA: on a CPU the kernels do not run")
    report = start("kernels", COLUMNS, {"seed": seed, **environment(torch.device("cuda"))}, output)
    failed = time_ops([bench_of(op) for op in only or ops], report, seed)
    report.finish(output, _plot(report))
    if failed:
        raise click.ClickException(f"not timed, since the check failed: {', '.join(failed)}")


def ops_with_bench() -> list[str]:
    """The folders of xgr_kernels that have a bench.py."""
    names = [module.name for module in pkgutil.iter_modules(xgr_kernels.__path__) if module.ispkg]
    return [op for op in names if importlib.util.find_spec(f"xgr_kernels.{op}.bench") is not None]


def bench_of(op: str) -> ModuleType:
    return importlib.import_module(f"xgr_kernels.{op}.bench")


def time_ops(benches: list[ModuleType], report: Report, seed: int) -> list[str]:
    """Check and time each of these; returns those whose check failed, with the reason in the notes."""
    failed = []
    for bench in benches:
        op = bench.__name__.split(".")[-2]
        torch.manual_seed(seed)
        try:
            bench.check()
        except Exception as error:  # noqa: BLE001  as of a card without FP8: it says nothing of the others
            failed.append(op)
            report.notes.append(str(error) if isinstance(error, WrongResult) else f"{op}: {error!r}")
            continue
        for row in _rows(op, bench):
            report.add(row)
    return failed


def _rows(op: str, bench: ModuleType) -> Iterator[dict[str, object]]:
    baselines = getattr(bench, "baselines", tuple)
    for case, median_ms, spread_ms in chain(bench.run(), baselines()):
        yield {"op": op, "case": case, "median_ms": float(median_ms), "spread_ms": float(spread_ms)}


def _plot(report: Report) -> Plot:
    groups = [f"{row['op']}: {row['case']}" for row in report.rows]
    times = [float(str(row["median_ms"])) for row in report.rows]
    return Plot("Kernels", "milliseconds, medians", groups, {"median": times}, log=True)
