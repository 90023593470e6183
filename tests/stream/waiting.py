"""Waiting for what a task on this loop does, without counting on how fast the machine is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def settle() -> None:
    """Let every task go on until it waits for something that is not ready: no time passes for it."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait for what a timer brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  what is waited for knows of no event
            await asyncio.sleep(0.005)
