"""`xgr-stream doctor`: what a worker would find here, before it starts, each finding with its remedy."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xgr_stream.cli.broker import broker_options, topic_options
from xgr_stream.cli.cache import cache_options
from xgr_stream.cli.challenger import challenger_options
from xgr_stream.cli.kinds import Name
from xgr_stream.config import (
    MIB,
    CacheConfig,
    ChallengerConfig,
    EngineConfig,
    HistoryConfig,
    Partitioner,
    StreamConfig,
    TopicNames,
    TransactionConfig,
)
from xgr_stream.errors import ConfigError, XgrError
from xgr_stream.scheduler.faults import Fault, fault
from xgr_stream.stream.checks import check_brokers, check_group, check_transactions
from xgr_stream.stream.finding import Finding, looked_at, not_looked_at

if TYPE_CHECKING:
    from xgr_stream.engine import Engine
    from xgr_stream.stream.connection import Connection

MARKS = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}


@click.command()
@click.option("--model", type=click.Path(exists=True, file_okay=False), help="Checkpoint, for the memory plan.")
@click.option("--catalog", type=click.Path(exists=True, dir_okay=False), help="Its catalog.")
@click.option("--device", default="cpu", help="Where the model is to compute.")
@cache_options
@challenger_options
@click.option("--users", default=1_000_000, type=click.IntRange(1), help="Users whose histories a worker is to hold.")
@click.option("--partitioner", type=click.Choice(["murmur2", "crc32", "any"]), default="murmur2")
@click.option(
    "--dedup-window",
    default=StreamConfig().dedup_window_ms,
    type=click.IntRange(0),
    metavar="MS",
    help="StreamConfig.dedup_window_ms of the workers: how long answers must be kept.",
)
@click.option("--transactional", is_flag=True, help="Also whether workers may have transactions.")
@click.option(
    "--group",
    default="xgr-stream",
    type=Name(),
    help="The workers' consumer group, which names their transactional ids.",
)
@topic_options
@broker_options
def doctor(
    connection: Connection,
    topics: TopicNames,
    partitioner: Partitioner,
    model: str | None,
    catalog: str | None,
    device: str,
    cache: CacheConfig,
    challenger: ChallengerConfig | None,
    users: int,
    dedup_window: int,
    transactional: bool,
    group: str,
) -> None:
    """Look at the device, the memory plan, the brokers, topics and clocks. Exits with 1 if anything is an error."""
    findings = _looked_at("the device", lambda: [_check_device(device)])
    if findings[0].grade == "ok" and model is not None and catalog is not None:
        config = EngineConfig(device=device, cache=cache)
        findings += _looked_at("the models", lambda: _check_models(model, catalog, config, challenger))
    elif model is None or catalog is None:
        findings.append(Finding("warning", "no memory plan for the cache", "give --model and --catalog"))
    findings += _looked_at("the histories' memory", lambda: [_history_plan(users)])
    findings += asyncio.run(_check_streams(connection, topics, partitioner, dedup_window, group, transactional))
    for finding in findings:
        click.echo(f"{MARKS[finding.grade]}  {finding.what}")
        if finding.remedy and finding.grade != "ok":
            click.echo(f"         → {finding.remedy}")
    errors = sum(finding.grade == "error" for finding in findings)
    warnings = sum(finding.grade == "warning" for finding in findings)
    click.echo(f"{errors} errors, {warnings} warnings")
    if errors:
        raise SystemExit(1)


def _looked_at(what: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What the check finds, whatever it meets."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001
        return [not_looked_at(what, error)]


async def _check_streams(
    connection: Connection,
    topics: TopicNames,
    partitioner: Partitioner,
    dedup_window_ms: int,
    group: str,
    transactional: bool,
) -> list[Finding]:
    looking = check_brokers(connection, topics, partitioner, dedup_window_ms, transactional)
    findings = await looked_at("the brokers", looking)
    if len(findings) > 1:  # else none answers
        findings += await looked_at(f"group {group}", check_group(connection, group))
        if transactional:
            findings += await looked_at("transactions", check_transactions(connection, TransactionConfig(), group))
    return findings


def _check_device(name: str) -> Finding:
    import torch

    from xgr_stream.model.load import usable_device

    try:
        device = usable_device(name)
    except ConfigError as error:
        return Finding("error", str(error), "install the driver, or choose another --device")
    if device.type != "cuda":
        return Finding("ok", f"device {name}, {torch.get_num_threads()} threads")
    free, total = torch.cuda.mem_get_info(device)
    properties = torch.cuda.get_device_properties(device)
    return Finding("ok", f"device {name}: {properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def _check_models(model: str, catalog: str, config: EngineConfig, challenger: ChallengerConfig | None) -> list[Finding]:
    """The engine, and with it in memory the challenger's."""
    engine, findings = _check_engine(model, catalog, config)
    if engine is None:
        return findings
    if challenger is None:
        return findings + _room_for_graphs(engine)
    source = challenger.catalog or catalog
    cache = CacheConfig(budget_bytes=challenger.cache_bytes, kv_cache_dtype=config.cache.kv_cache_dtype)
    second, found = _check_engine(challenger.model, source, replace(config, cache=cache))
    findings += [Finding(f.grade, f"{challenger.role} {challenger.model}: {f.what}", f.remedy) for f in found]
    if second is None:
        return findings + _room_for_graphs(engine)
    findings += _room_for_graphs(engine, second)
    if second.version == engine.version:
        findings.append(Finding("error", f"both models are of version {engine.version}", "name another checkpoint"))
    if second.codes != engine.codes and challenger.catalog_topic is None:
        what = f"the models have semantic IDs of {engine.codes} and {second.codes} codes, and one topic of updates"
        findings.append(Finding("error", what, "a topic of the second catalog's own: --challenger-topic"))
    return findings


def _check_engine(model: str, catalog: str, config: EngineConfig) -> tuple[Engine | None, list[Finding]]:
    """Whether the checkpoint and the catalog belong together, and how many users would be warm."""
    from xgr_stream.engine import Engine

    on_device = replace(config.cache, host_bytes=0, file_bytes=0, file_directory=None)  # else all of it would be taken
    try:
        engine = Engine.load(model, catalog, config=replace(config, cache=on_device))
    except XgrError as error:
        return None, [Finding("error", f"the engine can't be loaded: {error}", "mend what it names")]
    except Exception as error:
        if fault(error) is not Fault.MEMORY:
            raise
        what = f"the device has no memory for the engine ({type(error).__name__})"
        return None, [Finding("error", what, "a smaller cache, or another device")]
    pool, window = engine.cache.pool, engine.window
    tokens = engine.model.tokens.context_tokens(window.max_events)
    pages = pool.pages_for(tokens)
    user_bytes = pages * pool.bytes_per_page
    warm = pool.num_pages // pages
    in_fp8 = " in FP8" if config.cache.kv_cache_dtype == "fp8" else ""
    plan = (
        f"{engine.catalog.num_items:,} items, {engine.catalog_bytes / MIB:,.1f} MiB on the device; a full window of "
        f"{window.max_events} events is {tokens} tokens, {user_bytes / MIB:.2f} MiB{in_fp8}; warm on the device in "
        f"{config.cache.budget_bytes // MIB} MiB: {warm:,} users"
    )
    findings = [Finding("ok", plan)]
    if warm < 100:
        findings.append(
            Finding("warning", f"only {warm} users fit into the cache", "a larger cache, or a smaller window")
        )
    hidden_bytes = engine.cache.hidden.shape[1] * engine.cache.hidden.dtype.itemsize
    findings += _lower_tiers(user_bytes + pages * hidden_bytes, config.cache)
    return engine, findings


def _room_for_graphs(*engines: Engine) -> list[Finding]:
    """Whether their CUDA graphs have room on the device beside all that they take of it themselves."""
    import torch

    device = engines[0].cache.hidden.device
    if device.type != "cuda":
        return []
    free, wanted = torch.cuda.mem_get_info(device)[0], sum(engine.config.graph_bytes for engine in engines)
    what = f"CUDA graphs may take {wanted // MIB:,} MiB, {free // MIB:,} MiB are free beside the rest"
    if wanted > free:
        return [Finding("warning", what, "a smaller cache, or another device")]
    return [Finding("ok", what)]


def _lower_tiers(user_bytes: int, cache: CacheConfig) -> Iterator[Finding]:
    """Users in host memory and in the file behind it, against what the machine and the disk have."""
    if cache.host_bytes:
        what, option = f"{cache.host_bytes // MIB} MiB of host memory, pinned with CUDA", "--host-cache-mib"
        yield _tier(cache.host_bytes, user_bytes, what, _available_bytes(), option)
    if cache.file_directory is not None:
        what, option = f"a file of {cache.file_bytes // MIB} MiB in {cache.file_directory}", "--file-cache-mib"
        yield _tier(cache.file_bytes, user_bytes, what, shutil.disk_usage(cache.file_directory).free, option)


def _tier(size: int, user_bytes: int, what: str, available: int, option: str) -> Finding:
    what = f"behind it in {what}: {size // user_bytes:,} users"
    if available and size > available:
        return Finding("error", f"{what}; {available // MIB} MiB are available", f"less {option}")
    return Finding("ok", what)


def _history_plan(users: int) -> Finding:
    """Host memory of the histories, against what the machine has."""
    from xgr_stream.history.store import history_bytes

    keep = HistoryConfig().keep_events
    few, most = (history_bytes(users, events) / 2**30 for events in (200, keep))
    what = f"histories of {users:,} users: {few:.1f} GiB with 200 events each, {most:.1f} GiB with all {keep:,} kept"
    available = _available_bytes() / 2**30
    if available and few > available:
        return Finding("error", f"{what}; {available:.1f} GiB are available", "more workers, or a smaller keep_events")
    return Finding("ok", what)


def _available_bytes() -> int:
    """0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
