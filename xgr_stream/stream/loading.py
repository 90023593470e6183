"""A second version of the model on its way to the device, while another one serves there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from xgr_stream.config import ChallengerConfig, EngineConfig
from xgr_stream.errors import ConfigError
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.stream.setup import ServedEngine
from xgr_stream.stream.threads import on_a_thread

if TYPE_CHECKING:
    from xgr_stream.catalog import Catalog


async def load(config: ChallengerConfig, own: EngineConfig, primary: ServedEngine) -> ServedEngine:
    """On a thread of its own: weights are read and placed while the worker serves. `own`: the worker's settings."""
    return await on_a_thread(partial(_load, config, own, primary), "xgr-load")


def _load(config: ChallengerConfig, own: EngineConfig, primary: ServedEngine) -> ServedEngine:
    from xgr_stream.engine import Engine

    if config.catalog is not None:
        catalog: str | Catalog = config.catalog
    elif isinstance(primary, Engine):
        catalog = primary.catalog.anew()
    else:
        raise ConfigError("catalog must be given: that of the primary's engine is its own kind's")
    own = replace(own, cache=replace(own.cache, budget_bytes=config.cache_bytes))
    return Engine.load(config.model, catalog, config=own, history=primary.history)


def check(config: ChallengerConfig, engine: ServedEngine, primary: ServedEngine, topic: str) -> None:
    """Raise `ConfigError` unless the engine can be beside the primary, the updates of whose catalog are in `topic`."""
    if engine.version == primary.version:
        raise ConfigError(f"a challenger must be of another version than the primary, not {engine.version} too")
    if engine.history is not primary.history:
        raise ConfigError("a challenger's engine must read the worker's own history: give it recommender.history")
    if engine.codes != primary.codes and config.catalog_topic is None:
        raise ConfigError(
            f"catalog_topic must be given: the challenger has semantic IDs of {engine.codes} codes, and the "
            f"updates in {topic} are of {primary.codes}"
        )


async def prepare(engine: ServedEngine, device: DeviceWorker) -> None:
    """In pieces, and at most half of the device's time."""
    loop, steps = asyncio.get_running_loop(), engine.preparing()
    while True:
        started = loop.time()
        if not await asyncio.wrap_future(device.call(partial(_step, steps))):
            return
        await asyncio.sleep(loop.time() - started)


def _step(steps: Iterator[None]) -> bool:
    """Do the next one; whether there was one."""
    return next(steps, _step) is not _step
