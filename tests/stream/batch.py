"""Doubles of aiokafka's producer and of its batch of records."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any


class Batch:
    """Takes `room` records."""

    def __init__(self, room: int) -> None:
        self.values: list[bytes | None] = []
        self.headers: list[list[Any]] = []
        self._room = room

    def append(
        self, *, timestamp: None, key: bytes | None, value: bytes | None, headers: list[Any] | None = None
    ) -> object:
        if len(self.values) == self._room:
            return None
        self.values.append(value)
        self.headers.append(headers or [])
        return self

    def close(self) -> None:
        """Nothing comes any more."""


class Producer:
    """Remembers what it is given. `fate`: what happens to the next ones, an error or None; beyond that they wait."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[bytes | None]]] = []
        self.partitions: list[int] = []
        """Of the batches."""
        self.headers: list[list[Any]] = []
        """Of the batches' records."""
        self.futures: list[asyncio.Future[None]] = []
        self.fate: deque[Exception | None] = deque()
        self.room = 100
        self.client = SimpleNamespace(cluster=SimpleNamespace(partitions_for_topic=lambda topic: None), _topics=set())

    def create_batch(self) -> Batch:
        return Batch(self.room)

    async def send(self, topic: str, value: bytes | None, key: bytes | None, **_: Any) -> asyncio.Future[None]:
        return self._take(topic, [value])

    async def send_and_wait(self, topic: str, value: bytes, key: bytes, **_: Any) -> object:
        return await self._take(topic, [value])

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[None]:
        self.partitions.append(partition)
        self.headers += batch.headers
        return self._take(topic, batch.values)

    def _take(self, topic: str, values: list[bytes | None]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent.append((topic, values))
        self.futures.append(future)
        if self.fate:
            error = self.fate.popleft()
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        return future

    @property
    def batches(self) -> list[list[bytes | None]]:
        return [values for _, values in self.sent]
