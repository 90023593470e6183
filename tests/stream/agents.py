"""Records for a Faust agent in its test context, and whether they were acknowledged."""

from __future__ import annotations

import asyncio
from typing import Any

USER = b"user-1"
PARTITION = 0
"""Where the tests that accept any placement put everything."""


async def put(agent: Any, value: bytes | None) -> Any:
    """Give an agent one record, and let it work."""
    event = await agent.put(key=USER, value=value, partition=PARTITION, wait=False)
    event.acked = count_acks(event)
    for _ in range(20):
        await asyncio.sleep(0)
    return event


def count_acks(event: Any) -> list[int]:
    acks: list[int] = []
    event.ack = lambda: acks.append(event.message.offset)
    return acks
