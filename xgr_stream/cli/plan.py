"""`xgr-stream plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from xgr_stream.cli import planning
from xgr_stream.config import HistoryConfig
from xgr_stream.errors import ConfigError

PEAK_S = 60
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("costs", type=_FILE)
@click.option("--p99-ms", type=click.FloatRange(0, min_open=True), required=True, help="What 99 % must be within.")
@click.option("--trace", type=_FILE, help="Parquet: timestamp_ms, user_id, kind (`event` or `request`).")
@click.option("--requests-per-s", type=click.FloatRange(0, min_open=True), help="At the peak, without a trace.")
@click.option("--events-per-s", default=0.0, type=click.FloatRange(0), help="At the peak, without a trace.")
@click.option("--users", default=100_000, type=click.IntRange(1), help="Users who are active at the same time.")
@click.option("--cold", default=0.05, type=click.FloatRange(0, 1), help="Fraction of requests without cached prefix.")
@click.option("--user-mib", type=click.FloatRange(0, min_open=True), help="A user's prefix, as `doctor` tells it.")
@click.option("--context", type=int, help="Of the rows to use, if there are several.")
@click.option("--beam", type=int, help="Of the rows to use, if there are several.")
def plan(
    costs: Path,
    p99_ms: float,
    trace: Path | None,
    requests_per_s: float | None,
    events_per_s: float,
    users: int,
    cold: float,
    user_mib: float | None,
    context: int | None,
    beam: int | None,
) -> None:
    """Workers, memory and batches for a load, from the step times in COSTS, what `bench engine --json` wrote.

    P99 = own step + S (1 + c²) / (2 (1 - ρ)) · ln(ρ / 0.01): the tail of an M/G/1 queue in heavy traffic (Kingman
    1962). A start, to be measured.
    """
    if trace is not None:
        requests_per_s, events_per_s, users = _peak(trace)
    if requests_per_s is None:
        raise ConfigError("the load must be given: --trace or --requests-per-s")
    load = planning.Load(requests_per_s, events_per_s, cold)
    found = planning.plan(planning.steps_of(_rows(costs, context, beam)), load, p99_ms)
    figures: dict[str, object] = {
        "workers": found.workers,
        "batch": found.batch,
        "utilisation": round(found.utilisation, 3),
        "p99_ms": round(found.p99_ms, 2),
        "requests_per_s": round(requests_per_s, 2),
        "events_per_s": round(events_per_s, 2),
        "active_users": users,
        "history_gib_per_worker": round(_history_bytes(users / found.workers) / 2**30, 3),
    }
    if user_mib is not None:
        figures["cache_gib_per_worker"] = round(users * user_mib / found.workers / 1024, 3)
    click.echo(f"{found.workers} workers, batches of up to {found.batch}, each device busy {found.utilisation:.0%}")
    click.echo(f"expected P99 {found.p99_ms:.1f} ms at {requests_per_s:.1f} requests/s and {events_per_s:.1f} events/s")
    click.echo(json.dumps(figures))


def _rows(path: Path, context: int | None, beam: int | None) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text())["rows"]
        chosen = [
            row
            for row in rows
            if (context is None or row.get("context") == context) and (beam is None or row.get("beam") == beam)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} must be what `xgr-stream bench engine --json` writes: {error!r}") from error
    if not chosen:
        raise ConfigError(f"{path} must have rows of that context and beam")
    return chosen


def _peak(path: Path) -> tuple[float, float, int]:
    """Requests and events a second in the busiest minute of a trace, and all its users."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as a Parquet file: {error}") from error
    if missing := {"timestamp_ms", "user_id", "kind"} - set(table.column_names):
        raise ConfigError(f"{path} must have the columns timestamp_ms, user_id and kind, and lacks {sorted(missing)}")
    minutes = table["timestamp_ms"].to_numpy() // (PEAK_S * 1000)
    requests = np.asarray(table["kind"].to_pylist()) == "request"
    if not requests.any():
        raise ConfigError(f"{path} must have rows of kind request")
    numbers, counts = np.unique(minutes[requests], return_counts=True)
    busiest = numbers[counts.argmax()]
    events = int((minutes[~requests] == busiest).sum())
    return int(counts.max()) / PEAK_S, events / PEAK_S, len(table["user_id"].unique())


def _history_bytes(users: float) -> float:
    from xgr_stream.history.store import USER_BYTES
    from xgr_stream.history.user import EVENT_BYTES

    return users * (USER_BYTES + HistoryConfig().keep_events * EVENT_BYTES)
