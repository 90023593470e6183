"""`xgr-stream bench engine`: requests, warm and cold, against the card's floor, or against transformers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from xgr_stream.cli.benches.floors import Cell, Floor
from xgr_stream.cli.benches.options import Output, Setting, output_options, setting_options, several
from xgr_stream.cli.benches.plots import Plot
from xgr_stream.cli.benches.report import Report, start
from xgr_stream.cli.benches.requests import Measured, RequestBench
from xgr_stream.cli.benches.samples import Samples
from xgr_stream.cli.benches.subject import Subject
from xgr_stream.errors import ConfigError
from xgr_stream.types import MAX_BEAM_WIDTH

COLUMNS = {
    "context": "context",
    "batch": "batch",
    "beam": "beam",
    "warm_ms": "warm ms (quartiles, P99)",
    "pending_ms": "with its event ms",
    "pending_more_ms": "more",
    "host_ms": "from host memory ms",
    "in_gb_per_s": "back GB/s",
    "out_gb_per_s": "out GB/s",
    "cold_ms": "cold ms (quartiles, P99)",
    "gemm_floor_ms": "GEMM floor",
    "attention_floor_ms": "attention floor",
    "warm_over_floor": "warm / floor",
    "cold_over_floor": "cold / floor",
    "peak_mib": "peak MiB",
    "kv_over_needed": "KV held / needed",
    "invalid_items": "invalid items",
    "distinct_beams": "distinct beams",
}


@click.command()
@setting_options
@several("--context", "Tokens in each user's context; prints a table with the floors.  [default: 1000 with --shape]")
@several("--batch", "Requests at once.  [default: 1 and 8]")
@click.option(
    "--beam",
    "beams",
    type=click.IntRange(1, MAX_BEAM_WIDTH),
    multiple=True,
    help="Beam width. May be given several times with --shape or --context.  [default: 50; 256 with --shape]",
)
@click.option("--only", type=click.Choice(["warm", "cold"]), help="Time these requests alone.")
@click.option(
    "--pending",
    type=click.IntRange(0),
    default=0,
    help="Also time warm requests with so many tokens still to append: an event and its request together.",
)
@click.option("--host", is_flag=True, help="Also time requests whose prefix comes back from host memory.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items that a request asks for.")
@click.option(
    "--repeats", type=click.IntRange(1), default=40, show_default=True, help="Timed runs, after some that are not."
)
@click.option(
    "--cold-repeats", type=click.IntRange(1), help="Timed runs of cold and --pending requests.  [default: --repeats]"
)
@click.option(
    "--against",
    type=click.Choice(["transformers"]),
    help="Without --shape and --context: also run its constrained beam search, compare the results, and print how much "
    "faster the engine is.",
)
@click.option(
    "--events",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Events in each user's history, without --shape and --context.",
)
@click.option(
    "--baseline-repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Timed runs of the baseline, after one.",
)
@output_options
def engine(
    setting: Setting,
    context: tuple[int, ...],
    batch: tuple[int, ...],
    beams: tuple[int, ...],
    only: str | None,
    pending: int,
    host: bool,
    k: int,
    repeats: int,
    cold_repeats: int | None,
    against: str | None,
    events: int,
    baseline_repeats: int,
    output: Output,
) -> None:
    """Time requests: warm (prefix cached) and cold (whole history prefilled).

    With --shape or --context, each context, batch and beam beside the floor of the card: its matrix products and its
    attention. Otherwise a checkpoint (by default a random Qwen3 of 2 layers, hidden size 128, 3 levels of 64 codes,
    and 1,349 random items), on the CPU unless --device says otherwise, if asked for against transformers.
    """
    batches = batch or (1, 8)
    if setting.shape is None and not context:
        needless = _given("levels", "codes", "items", "fp8", "k", "cold_repeats", "pending", "host", "only", "plot")
        if len(beams) > 1:
            needless.append("several --beam")
        if needless:
            raise ConfigError(f"{', '.join(needless)}: only with --shape or --context")
        _against(
            setting,
            batches,
            output,
            compare=against == "transformers",
            beam=beams[0] if beams else 50,
            events=events,
            repeats=repeats,
            baseline_repeats=baseline_repeats,
        )
        return
    needless = _given("against", "events", "baseline_repeats")
    if needless:
        raise ConfigError(f"{', '.join(needless)}: only of a checkpoint, without --shape and --context")
    if only and (pending or host):
        raise ConfigError(f"--only {only} times these requests alone: leave out --pending and --host, or --only")
    measured = Measured(
        warm=only != "cold",
        cold=only != "warm",
        host=host,
        pending_events=0,
        repeats=repeats,
        cold_repeats=cold_repeats or repeats,
        k=k,
    )
    _table(setting, measured, pending, context or (1000,), batches, beams or (256,), output)


def _given(*names: str) -> list[str]:
    """Those of these options that are on the command line, as they are written there."""
    context = click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return [f"--{name.replace('_', '-')}" for name in given]


def _table(
    setting: Setting,
    measured: Measured,
    pending: int,
    contexts: Sequence[int],
    batches: Sequence[int],
    beams: Sequence[int],
    output: Output,
) -> None:
    """The table of all combinations."""
    subject = Subject(setting)
    report = start("engine", COLUMNS, subject.description(), output)
    per_event = subject.event_tokens
    if pending % per_event:
        raise ConfigError(f"--pending must be whole events of {per_event} tokens, not {pending}")
    measured = replace(measured, pending_events=pending // per_event)
    groups = [[Cell(context, batch, beam) for batch in batches for beam in beams] for context in contexts]
    floors = _floors(subject, [cell for group in groups for cell in group], report, prefill=measured.cold)
    for group in groups:
        run = RequestBench(subject, measured, group[0].context, group)
        for cell in group:
            report.add(run.measure(cell, floors.get(cell)))
        del run
    report.finish(output, _plot(report))


def _floors(subject: Subject, cells: Sequence[Cell], report: Report, *, prefill: bool) -> dict[Cell, Floor]:
    """Each cell's floor, measured on this card now; nothing on a CPU."""
    if subject.device.type != "cuda":
        report.notes.append("The floors and the peak memory are measured on CUDA only.")
        return {}
    measuring = subject.floors()
    floors = {cell: measuring.measure(cell, prefill=prefill) for cell in cells}
    measuring.release()
    bandwidth, rate = measuring.copy_bytes_per_ms, measuring.operations_per_ms
    report.notes.append(
        f"Copy bandwidth {bandwidth / 1e9:.2f} TB/s; matrix product of 8192^3 {rate / 1e9:.0f} TFLOP/s."
    )
    report.more["copy_bytes_per_s"], report.more["operations_per_s"] = bandwidth * 1e3, rate * 1e3
    return floors


def _plot(report: Report) -> Plot:
    def values(name: str) -> list[float | None]:
        found = [row.get(name) for row in report.rows]
        return [v.median if isinstance(v, Samples) else v if isinstance(v, float) else None for v in found]

    names = {
        "floor of a warm request": "floor_ms",
        "warm": "warm_ms",
        "with its event": "pending_ms",
        "floor of a cold request": "cold_floor_ms",
        "from host memory": "host_ms",
        "cold": "cold_ms",
    }
    groups = [f"{row['context']} tokens, {row['batch']} x {row['beam']} beams" for row in report.rows]
    series = {label: values(name) for label, name in names.items()}
    return Plot("A batch of requests", "milliseconds, medians", groups, series, log=True)


def _against(setting: Setting, batches: Sequence[int], output: Output, *, compare: bool, **numbers: int) -> None:
    """A checkpoint, warm, cold and, to `compare`, against transformers; `numbers` as in `Workload`."""
    from xgr_stream.cli.benches.against import EngineBench, Workload, random_checkpoint

    with ExitStack() as stack:
        model = setting.model
        if model is None:
            model = random_checkpoint(Path(stack.enter_context(tempfile.TemporaryDirectory())), setting.seed)
        workload = Workload(
            model=model,
            catalog=setting.catalog or model / "catalog.parquet",
            threads=setting.threads,
            seed=setting.seed,
            device=setting.device or "cpu",
            dtype=setting.dtype,
            kv_cache_dtype=setting.kv_cache_dtype or "auto",
            **numbers,
        )
        run = EngineBench(workload)
        click.echo(run.description())
        rows = []
        for batch in batches:
            rows.append(run.measure(batch, against_transformers=compare))
            click.echo(rows[-1].text())
    if output.json is not None:
        figures = {"setting": run.description(), "rows": [row.figures() for row in rows]}
        output.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if any(row.differing for row in rows):
        raise click.ClickException("the engine's results differ from the baseline's")
