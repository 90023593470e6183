"""`xgr-stream bench`: figures that anyone can reproduce, each with what it was measured against."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from xgr_stream.types import MAX_BEAM_WIDTH


@click.group()
def bench() -> None:
    """Time the engine and the kernels, each against a baseline."""


@bench.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Checkpoint directory.  "
    "[default: a random Qwen3 of 2 layers, hidden size 128, 3 levels of 64 codes, and 1,349 random items]",
)
@click.option("--catalog", type=click.Path(exists=True, path_type=Path), help="[default: catalog.parquet in --model]")
@click.option(
    "--against",
    type=click.Choice(["transformers"]),
    help="Also run its constrained beam search, compare the results, and print how much faster the engine is.",
)
@click.option("--beam", type=click.IntRange(1, MAX_BEAM_WIDTH), default=50, show_default=True, help="Beam width.")
@click.option("--events", type=click.IntRange(1), default=200, show_default=True, help="Events in each user's history.")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 8),
    show_default=True,
    help="Requests at once; may be given several times.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Timed runs of the engine, after two that are not.",
)
@click.option(
    "--baseline-repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Timed runs of the baseline, after one.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Torch threads, of the engine and of the baseline alike.",
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
def engine(
    model: Path | None,
    catalog: Path | None,
    against: str | None,
    beam: int,
    events: int,
    batches: tuple[int, ...],
    repeats: int,
    baseline_repeats: int,
    threads: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Time requests: warm (prefix cached) and cold (whole history prefilled)."""
    from xgr_stream.cli.engine_bench import EngineBench, Workload, random_checkpoint

    with ExitStack() as stack:
        if model is None:
            model = random_checkpoint(Path(stack.enter_context(tempfile.TemporaryDirectory())), seed)
        workload = Workload(
            model=model,
            catalog=catalog or model / "catalog.parquet",
            beam=beam,
            events=events,
            repeats=repeats,
            baseline_repeats=baseline_repeats,
            threads=threads,
            seed=seed,
        )
        run = EngineBench(workload)
        click.echo(run.description())
        rows = []
        for batch in batches:
            rows.append(run.measure(batch, against_transformers=against == "transformers"))
            click.echo(rows[-1].text())
    if json_path is not None:
        figures = {"setting": run.description(), "rows": [row.figures() for row in rows]}
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if any(row.differing for row in rows):
        raise click.ClickException("the engine's results differ from the baseline's")
