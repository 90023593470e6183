"""`xgr-stream bench tiers`: who is served warm when users outnumber the device's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import click
import torch

from xgr_stream.cache import DecayedRate, GreedyDual, LeastRecentlyUsed, Worth
from xgr_stream.cli.benches.options import Output, output_options
from xgr_stream.cli.benches.report import environment, start
from xgr_stream.cli.benches.tier_simulation import PAGE_TOKENS, Costs, Simulation, trace
from xgr_stream.cli.cache import kv_cache_dtype_option
from xgr_stream.config import KvCacheDtype
from xgr_stream.engine.sizing import HALF_LIFE, LEAST_HALF_LIFE

GB = 1_000_000_000
COLUMNS = {
    "policy": "policy",
    "warm_share": "warm",
    "host_share": "host",
    "cold_share": "cold",
    "gpu_ms": "GPU ms a request",
    "ahead": "brought back by events, a request",
    "demoted": "copied out, a request",
    "copied_ms": "link ms a request",
}
PRESETS = {
    "qwen3-1.7b": Costs(5000, 114_688, warm_ms=5.5, cold_ms=36.0, copy_bytes_per_s=50e9),
    "small-0.1b": Costs(1000, 12 << 10, warm_ms=1.5, cold_ms=4.0, copy_bytes_per_s=50e9),
}
"""In bfloat16. Of qwen3-1.7b: docs/performance.md. The times of small-0.1b are assumed, to be given by who has measured
them."""


@click.command()
@click.option("--shape", type=click.Choice(sorted(PRESETS)), default="qwen3-1.7b", show_default=True)
@click.option("--context", type=click.IntRange(1), help="Tokens of each user.  [default: 5000; 1000 of small-0.1b]")
@click.option("--warm-ms", type=click.FloatRange(0, min_open=True), help="A request whose prefix is there.")
@click.option("--cold-ms", type=click.FloatRange(0, min_open=True), help="A request whose prefix is computed.")
@click.option(
    "--copy-gb-per-s", type=click.FloatRange(0, min_open=True), default=50.0, show_default=True, help="From the host."
)
@click.option("--device-gb", type=click.FloatRange(0), default=100.0, show_default=True, help="Prefix cache.")
@click.option("--host-gb", type=click.FloatRange(0), default=500.0, show_default=True, help="Host memory behind it.")
@click.option("--users", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=100_000, show_default=True, help="Counted.")
@click.option("--warm-up", type=click.IntRange(0), default=50_000, show_default=True, help="Requests before these.")
@click.option("--events", type=click.IntRange(0), default=10, show_default=True, help="Events a request.")
@click.option("--zipf", type=click.FloatRange(0), default=1.0, show_default=True, help="Exponent of the users' rates.")
@click.option(
    "--sessions",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Sessions at once, of the events and then the request of one user; 0: each is of a user drawn anew.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@kv_cache_dtype_option
@output_options
def tiers(
    shape: str,
    context: int | None,
    warm_ms: float | None,
    cold_ms: float | None,
    copy_gb_per_s: float,
    device_gb: float,
    host_gb: float,
    users: int,
    requests: int,
    warm_up: int,
    events: int,
    zipf: float,
    sessions: int,
    seed: int,
    kv_cache_dtype: KvCacheDtype,
    output: Output,
) -> None:
    """Simulate a cache that users outnumber: LRU and the policy that serves, each without lower tiers and with host
    memory, and GreedyDual, on one trace. The cache's own code decides; nothing is computed or copied.

    A request that waits for its copy from host memory is counted as if nothing ran beside the copy. How long such a
    request takes on a card is what `bench engine --host` times.
    """
    preset = PRESETS[shape]
    costs = replace(
        preset,
        tokens=context or preset.tokens,
        bytes_per_token=preset.bytes_per_token // (2 if kv_cache_dtype == "fp8" else 1),
        warm_ms=warm_ms or preset.warm_ms,
        cold_ms=cold_ms or preset.cold_ms,
        copy_bytes_per_s=copy_gb_per_s * GB,
    )
    page_bytes = PAGE_TOKENS * costs.bytes_per_token
    pages, host_pages = int(device_gb * GB / page_bytes), int(host_gb * GB / page_bytes)
    own = -(-costs.tokens // PAGE_TOKENS)
    if pages < own:
        raise click.UsageError(f"--device-gb must hold one user, {own * page_bytes / GB:.3f}, not {device_gb}")
    half_life = max(LEAST_HALF_LIFE, HALF_LIFE * (pages // own))
    setting: dict[str, object] = {
        "shape": f"{shape}, {costs.tokens} tokens of {costs.bytes_per_token} bytes ({kv_cache_dtype})",
        "costs": f"warm {costs.warm_ms} ms, cold {costs.cold_ms} ms, copy {costs.copy_ms:.2f} ms",
        "memory": f"{pages // own} users on the device, {host_pages // own} more in host memory",
        "trace": f"{users} users by Zipf {zipf}, {requests} requests after {warm_up}, {events} events each, "
        f"{sessions} sessions at once, seed {seed}",
    }
    report = start("tiers", COLUMNS, {**setting, **environment(torch.device("cpu"))}, output)
    variants: dict[str, tuple[Callable[[], Worth], int]] = {
        "LRU": (LeastRecentlyUsed, 0),
        "LRU, host": (LeastRecentlyUsed, host_pages),
        "GreedyDual": (GreedyDual, 0),
        "rate x cost": (lambda: DecayedRate(half_life), 0),
        "rate x cost, host": (lambda: DecayedRate(half_life), host_pages),
    }
    for name, (worth, behind) in variants.items():
        begun = perf_counter()
        simulation = Simulation(costs, worth(), pages, behind)
        steps = trace(
            users=users, requests=requests + warm_up, events=events, exponent=zipf, sessions=sessions, seed=seed
        )
        served = simulation.run(steps, warm_up * (events + 1))
        report.add({"policy": name, **served.figures(costs), "simulated_s": perf_counter() - begun})
    report.finish(output)
