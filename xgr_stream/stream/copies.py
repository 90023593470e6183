"""Which `reply_to` topics a transaction may write copies to: one that is not there would hold the transaction up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from xgr_stream.metrics import Metrics

LOOK_UP_TIMEOUT_S = 2.0
REMEMBERED_S = 60.0
"""How long a topic counts as there, or not, before it is looked up again."""
MAX_TOPICS = 10_000
"""Names remembered; requesters choose them."""


class Copies:
    """Topics that were looked up, and whether they took copies."""

    def __init__(self, producer: AIOKafkaProducer, metrics: Metrics) -> None:
        self._producer = producer
        self._metrics = metrics
        self._found: dict[str, tuple[bool, float]] = {}
        self._looking: dict[str, asyncio.Task[bool]] = {}

    def known(self, topic: str) -> bool:
        """Whether it was looked up lately."""
        _, until = self._found.get(topic, (False, 0.0))
        return time.monotonic() < until

    def takes(self, topic: str) -> bool:
        """Whether a copy may be written to it; counts one that may not."""
        takes, _ = self._found.get(topic, (False, 0.0))
        if not takes:
            self._metrics.reply_copies_failed.inc()
        return takes

    def refuse(self, topics: Iterable[str]) -> None:
        """A transaction with copies to these failed: write none for a while."""
        for topic in topics:
            self._note(topic, False)

    async def look_up(self, topic: str) -> None:
        """Once for all who ask at the same time."""
        if self.known(topic):
            return
        task = self._looking.get(topic)
        if task is None:
            task = self._looking[topic] = asyncio.create_task(self._exists(topic))
            task.add_done_callback(lambda _: self._looking.pop(topic, None))
        self._note(topic, await asyncio.shield(task))

    async def _exists(self, topic: str) -> bool:
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
                return bool(await self._producer.partitions_for(topic))
        except (KafkaError, TimeoutError):
            return False

    def _note(self, topic: str, takes: bool) -> None:
        if len(self._found) >= MAX_TOPICS:
            self._found.clear()
        self._found[topic] = (takes, time.monotonic() + REMEMBERED_S)
