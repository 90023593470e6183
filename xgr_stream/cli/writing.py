"""Many records of one command to one topic."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from xgr_stream.stream.connection import Connection

IN_FLIGHT = 10_000
"""Records written and not acknowledged yet."""


class Message(NamedTuple):
    key: bytes
    value: bytes | None
    partition: int | None = None
    """None: where its key belongs."""


async def write_all(connection: Connection, topic: str, messages: Iterable[Message]) -> int:
    """Write them in their order; how many, once the broker has them all. What fails behind others says how many of
    them are written."""
    from aiokafka.errors import KafkaError

    producer = await connection.start_producer(linger_ms=5)
    waiting: deque[asyncio.Future[Any]] = deque()
    count = 0
    try:
        for key, value, partition in messages:
            waiting.append(await producer.send(topic, value, key, partition=partition))
            count += 1
            while len(waiting) > IN_FLIGHT:
                await waiting[0]
                waiting.popleft()
        while waiting:
            await waiting[0]
            waiting.popleft()
    except KafkaError as error:
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        written = count - sum(isinstance(end, BaseException) for end in ends)
        raise click.ClickException(f"{written:,} records were written to {topic}, and not all: {error}") from error
    finally:
        await producer.stop()
    return count
