"""`xgr-stream plan`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from xgr_stream.cli import memory_split, planning, traces
from xgr_stream.cli.kinds import Finite
from xgr_stream.config import HistoryConfig
from xgr_stream.errors import ConfigError
from xgr_stream.types import MAX_BEAM_WIDTH

DEFAULT_USERS = 100_000
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


_ABOVE_0 = Finite(0, min_open=True)


@click.command()
@click.argument("costs", type=_FILE)
@click.option("--p99-ms", type=_ABOVE_0, required=True, help="What 99 % must be within.")
@click.option("--trace", type=_FILE, help="Parquet: timestamp_ms, user_id, kind (`event` or `request`); no rates then.")
@click.option("--requests-per-s", type=_ABOVE_0, help="At the peak, without a trace.")
@click.option("--events-per-s", type=Finite(0), help="At the peak, without a trace.  [default: 0]")
@click.option(
    "--users",
    type=click.IntRange(1),
    help=f"Who are active at the same time, without a trace.  [default: {DEFAULT_USERS:,}]",
)
@click.option("--cold", default=0.05, type=Finite(0, 1), help="Fraction of requests without cached prefix.")
@click.option("--device-gib", type=_ABOVE_0, help="Memory of a worker's device; says how it is split.")
@click.option("--host-cache-mib", default=0, type=click.IntRange(0), help="A worker's host memory behind it.")
@click.option(
    "--user-mib", type=_ABOVE_0, help="A user's prefix, as `doctor` tells it.  [default: that of COSTS' context]"
)
@click.option("--context", type=int, help="Of the rows to use, if there are several.")
@click.option("--beam", type=int, help="Of the rows to use, if there are several.")
def plan(
    costs: Path,
    p99_ms: float,
    trace: Path | None,
    requests_per_s: float | None,
    events_per_s: float | None,
    users: int | None,
    cold: float,
    device_gib: float | None,
    host_cache_mib: int,
    user_mib: float | None,
    context: int | None,
    beam: int | None,
) -> None:
    """Workers, memory and batches for a load, from the step times in COSTS: what `bench engine --json` wrote, with
    --shape or --context, a small and a large --batch, and --pending as many tokens as a user's events between two
    requests have.

    Each number of workers is simulated, with the scheduler's order of requests, appends and prefills. The host is left
    out but for what it can take in. It is good to choose what to measure next (docs/performance.md, "Planning").
    """
    rates = {"--requests-per-s": requests_per_s, "--events-per-s": events_per_s, "--users": users}
    peak = _peak(trace, rates)
    load = planning.Load(peak.requests_per_s, peak.events_per_s, cold)
    rows, chunk_tokens = _rows(costs, context, beam)
    found = planning.plan(planning.costs_of(rows, load, chunk_tokens), load, p99_ms)
    latency = found.latency
    lines, memory = _memory(rows, peak.users, found.workers, device_gib, host_cache_mib, user_mib)
    batch_rows = max(MAX_BEAM_WIDTH, found.batch * rows[0]["beam"])  # EngineConfig takes no fewer
    figures: dict[str, object] = {
        "workers": found.workers,
        "batch": found.batch,
        "max_batch_rows": batch_rows,
        "utilisation": round(latency.utilisation, 3),
        "p50_ms": round(latency.p50_ms, 2),
        "p99_ms": round(latency.p99_ms, 2),
        "ready_p99_ms": None if math.isnan(latency.ready_p99_ms) else round(latency.ready_p99_ms, 2),
        "requests_per_s": round(load.requests_per_s, 2),
        "events_per_s": round(load.events_per_s, 2),
        "active_users": peak.users,
    }
    plural, not_cold = "s" if found.workers > 1 else "", ""
    if 0 < cold < 1:
        not_cold = f" ({latency.ready_p99_ms:.1f} of requests that are not cold)"
    click.echo(
        f"{found.workers} worker{plural}, batches of up to {found.batch} requests (max_batch_rows {batch_rows}), each "
        f"device busy {latency.utilisation:.0%}"
    )
    click.echo(
        f"expected P50 {latency.p50_ms:.1f} ms, P99 {latency.p99_ms:.1f} ms{not_cold} at {load.requests_per_s:.1f} "
        f"requests/s and {load.events_per_s:.1f} events/s"
    )
    if load.events_per_s and math.isfinite(found.ahead_per_s):
        figures["appends_ahead_per_s"] = round(found.ahead_per_s)
        click.echo(f"time for {found.ahead_per_s:,.0f} appends/s or more before the users' requests, which do the rest")
    click.echo("\n".join(lines))
    click.echo(json.dumps(figures | memory))


def _peak(trace: Path | None, rates: Mapping[str, float | None]) -> traces.Peak:
    """The load, by the trace or by --requests-per-s, --events-per-s and --users."""
    requests_per_s, events_per_s, users = rates.values()
    if trace is not None:
        if given := [name for name, value in rates.items() if value is not None]:
            raise ConfigError(f"--trace has the load: leave out {', '.join(given)}")
        return traces.peak(trace)
    if requests_per_s is None:
        raise ConfigError("the load must be given: --trace or --requests-per-s")
    return traces.Peak(requests_per_s, events_per_s or 0.0, DEFAULT_USERS if users is None else int(users))


def _rows(path: Path, context: int | None, beam: int | None) -> tuple[list[dict[str, Any]], int]:
    """The rows of that context and beam, and how many tokens a chunk of a prefill has where they were measured."""
    from xgr_stream.scheduler.pace import CHUNK_TOKENS

    try:
        figures = json.loads(path.read_text())
        rows = [dict(row) for row in figures["rows"]]
        on_cuda = "cuda" in figures.get("setting", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} must be what `xgr-stream bench engine --json` writes: {error!r}") from error
    chosen = [
        row
        for row in rows
        if (context is None or row.get("context") == context) and (beam is None or row.get("beam") == beam)
    ]
    if not chosen:
        has = ", ".join(dict.fromkeys(str((row.get("context"), row.get("beam"))) for row in rows)) or "none"
        raise ConfigError(f"{path} must have rows of that context and beam; (context, beam) of those it has: {has}")
    return chosen, CHUNK_TOKENS["cuda" if on_cuda else "cpu"]


def _memory(
    rows: list[dict[str, Any]],
    users: int,
    workers: int,
    device_gib: float | None,
    host_cache_mib: int,
    user_mib: float | None,
) -> tuple[list[str], dict[str, object]]:
    """How a worker's memory is split, as far as it is known: in words, and the figures."""
    from xgr_stream.history.store import history_bytes

    each = math.ceil(users / workers)
    history_gib = history_bytes(each, HistoryConfig().keep_events) / 2**30
    figures: dict[str, object] = {"history_gib_per_worker": round(history_gib, 3)}
    if user_mib is None and (device_gib is not None or all("user_mib" in row for row in rows)):
        user_mib = memory_split.user_mib_of(rows)
    if user_mib is not None:
        figures["cache_gib_per_worker"] = round(each * user_mib / 1024, 3)
    lines = ["memory of a worker:"]
    if user_mib is None:
        lines.append("  device: not known without --user-mib (`xgr-stream doctor` tells it) and --device-gib")
    elif device_gib is None:
        lines.append(
            f"  device: {each * user_mib / 1024:,.1f} GiB of KV cache for all of its {each:,} active users, "
            f"{user_mib:,.2f} MiB each; split with --device-gib"
        )
    else:
        split = memory_split.split(rows, device_gib * 1024, host_cache_mib, user_mib, each)
        rest = each - split.warm - split.host
        figures |= {
            "model_mib": split.model_mib,
            "free_mib": split.free_mib,
            "cache_mib": split.cache_mib,
            "users_warm": split.warm,
            "users_host": split.host,
            "users_cold": rest,
        }
        lines.append(
            f"  device, {device_gib:g} GiB: {split.model_mib / 1024:,.1f} weights, catalog and work space, "
            f"{split.free_mib / 1024:,.1f} kept free, {split.cache_mib / 1024:,.1f} KV cache "
            f"(--cache-mib {split.cache_mib})"
        )
        lines.append(
            f"  of its {each:,} active users, {user_mib:,.2f} MiB each: {split.warm:,} warm on the device, "
            f"{split.host:,} in {host_cache_mib:,} MiB of host memory (--host-cache-mib), {rest:,} cold"
        )
        if rest:
            lines.append("  --cold must be those users' share of the requests: `xgr-stream bench tiers` tells it")
    lines.append(f"  host: {history_gib:,.2f} GiB of histories, {host_cache_mib / 1024:,.1f} GiB of prefixes")
    return lines, figures
