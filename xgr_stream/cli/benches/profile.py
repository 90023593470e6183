"""`xgr-stream bench profile`: where the time of a warm batch goes on the GPU."""

from __future__ import annotations

import gzip
import json
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import click
import torch

from xgr_stream.cli.benches.floors import Cell, Floor
from xgr_stream.cli.benches.options import Output, Setting, output_options, setting_options
from xgr_stream.cli.benches.plots import Plot
from xgr_stream.cli.benches.report import Report, start
from xgr_stream.cli.benches.samples import measure, synchronize
from xgr_stream.cli.benches.subject import Requests, Subject, check_answers, requests_of
from xgr_stream.cli.benches.timeline import ALONE, GLUE, IN_TURN, Timeline, read_trace
from xgr_stream.engine import Engine
from xgr_stream.errors import ConfigError
from xgr_stream.types import MAX_BEAM_WIDTH

COLUMNS = {"part": "part", "ms": "ms per batch", "share": "share", "floor_ms": "floor ms", "launches": "launches"}
COUNTERS = ("num_alloc_retries", "num_device_alloc", "allocation.all.allocated")
"""Of `torch.cuda.memory_stats`."""


@click.command()
@setting_options
@click.option("--context", type=click.IntRange(1), default=1000, show_default=True, help="Tokens in each context.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Requests at once.")
@click.option("--beam", type=click.IntRange(1, MAX_BEAM_WIDTH), default=256, show_default=True, help="Beam width.")
@click.option("--batches", type=click.IntRange(2), default=20, show_default=True, help="Batches in the trace.")
@click.option(
    "--allocation-requests",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Warm requests over which allocator events are counted.",
)
@click.option("--kernels", type=click.IntRange(0), default=25, show_default=True, help="Kernels listed, longest first.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the trace here: Chrome's format, compressed (.json.gz).",
)
@output_options
def profile(
    setting: Setting,
    context: int,
    batch: int,
    beam: int,
    batches: int,
    allocation_requests: int,
    kernels: int,
    trace: Path | None,
    output: Output,
) -> None:
    """Trace warm batches and say where their time goes: matrix products, attention, selection, copies, the glue between
    them, gaps on the GPU, the host. Needs CUDA: it reads the GPU's timeline.
    """
    if trace is not None and not trace.name.endswith(".json.gz"):
        raise ConfigError(f"--trace must end in .json.gz, not {trace.name!r}")
    subject = Subject(setting)
    if subject.device.type != "cuda":
        raise ConfigError("bench profile needs CUDA (--device cuda): it reads the GPU's timeline")
    report = start("profile", COLUMNS, subject.description(), output)
    measuring = subject.floors()
    floor = measuring.measure(Cell(context, batch, beam), prefill=False)
    measuring.release()
    users = subject.users(batch, context)
    engine = subject.engine(users, beam=beam, rows=batch * beam)
    engine.warm(users.steps[0])
    requests = requests_of(users.steps[0], beam=beam, k=min(10, beam))
    alone = measure(lambda: check_answers(engine.answer(requests)), subject.device, repeats=50, warm_up=5)
    in_turn_ms = _in_turn(engine, requests, batches) / batches * 1e3
    traced = _traced(engine, requests, batches, trace)
    for row in rows(traced[ALONE], floor, alone.median):
        report.add(row)
    report.notes.append(f"One batch by itself {alone.median:.3f} ms; batch after batch {in_turn_ms:.3f} ms each.")
    report.notes += notes(traced[IN_TURN])
    report.notes.append(_allocations(engine, requests, allocation_requests, report))
    kernels_of = traced[ALONE].kernels()
    report.more["kernels"] = [
        {"group": group, "kernel": name, "launches": launches, "us": us} for group, name, launches, us in kernels_of
    ]
    for group, name, launches, us in kernels_of[:kernels]:
        click.echo(f"  {us:9.1f} µs {launches:7.1f} x  {group:9}  {name[:100]}")
    report.finish(output, _plot(report))


def rows(timeline: Timeline, floor: Floor, alone_ms: float) -> list[dict[str, object]]:
    """Parts of a batch by itself, means over the traced batches; they add up to `alone_ms`, which is not traced."""
    count = len(timeline.batches)
    span = sum(span.end - span.start for span in timeline.spans()) / count
    busy = sum(timeline.busy_us()) / count
    launches: dict[str, float] = {}
    for group, _, times, _ in timeline.kernels():
        launches[group] = launches.get(group, 0.0) + times
    groups = {group: sum(us) / count for group, us in timeline.groups().items()}
    parts = {
        **groups,
        "kernels at once, counted twice above": busy - sum(groups.values()),
        "gaps within the batch": span - busy,
        "host, before and after": alone_ms * 1e3 - span,
    }
    floors = {"GEMM": floor.gemm_ms, "attention": floor.attention_ms}
    table: list[dict[str, object]] = [
        {
            "part": f"{GLUE} (norms, rotation, activations)" if part == GLUE else part,
            "ms": us / 1e3,
            "share": f"{us / alone_ms / 10:.1f} %",
            "floor_ms": floors.get(part),
            "launches": round(launches[part], 1) if part in launches else None,
        }
        for part, us in parts.items()
    ]
    return [*table, {"part": "one batch by itself", "ms": alone_ms, "share": "100 %", "floor_ms": floor.warm_ms}]


def notes(timeline: Timeline) -> list[str]:
    """What the gaps and copies of batches in turn say."""
    gaps, beside = timeline.gaps_us() or [0.0], timeline.copies_beside_kernels()
    return [
        f"Batch after batch, {len(timeline.batches)} of them: the GPU's largest gap between two {max(gaps):.1f} µs, "
        f"the median {statistics.median(gaps):.1f} µs.",
        "No copies." if beside is None else f"Of the copies' time, {beside:.0%} passed while a kernel ran.",
    ]


def _in_turn(engine: Engine, requests: Requests, batches: int) -> float:
    """Seconds for so many batches, each prepared while the one before it runs."""
    synchronize(engine.model.decoder.device)
    started = perf_counter()
    running = None
    for _ in range(batches):
        _mark(IN_TURN)
        following = engine.begin(requests)
        if running is not None:
            running.finish()
        running = following
    if running is not None:
        running.finish()
    synchronize(engine.model.decoder.device)
    return perf_counter() - started


def _mark(name: str) -> None:
    """A batch begins here on the host."""
    with torch.profiler.record_function(name):
        pass


def _traced(engine: Engine, requests: Requests, batches: int, path: Path | None) -> dict[str, Timeline]:
    """Run batches alone and in turn under the profiler, keep the trace if it is asked for, and read it."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(batches):
            _mark(ALONE)
            engine.answer(requests)
            synchronize(engine.model.decoder.device)
        _in_turn(engine, requests, batches)
    with tempfile.TemporaryDirectory() as folder:
        written = path or Path(folder) / "trace.json.gz"
        profiler.export_chrome_trace(str(written))
        with gzip.open(written, "rt", encoding="utf-8") as file:
            return read_trace(json.load(file))


def _allocations(engine: Engine, requests: Requests, count: int, report: Report) -> str:
    """Count the allocator's events over `count` warm requests."""

    def counters() -> dict[str, int]:
        stats = torch.cuda.memory_stats(engine.model.decoder.device)
        return {name: int(stats.get(name, 0)) for name in COUNTERS}

    before = counters()
    rounds = -(-count // len(requests))
    for _ in range(rounds):
        engine.answer(requests)
    after = counters()
    moved = {name: after[name] - before[name] for name in COUNTERS}
    report.more["allocations"] = {"requests": rounds * len(requests), **moved}
    told = ", ".join(f"{name} {change:+d}" for name, change in moved.items())
    return f"Allocator events over {rounds * len(requests)} warm requests: {told}."


def _plot(report: Report) -> Plot:
    parts = [row for row in report.rows if row["part"] != "one batch by itself"]

    def values(name: str) -> list[float | None]:
        found = [row[name] for row in parts]
        return [value if isinstance(value, float) else None for value in found]

    series = {"measured": values("ms"), "floor": values("floor_ms")}
    return Plot("One warm batch", "milliseconds", [str(row["part"]) for row in parts], series)
