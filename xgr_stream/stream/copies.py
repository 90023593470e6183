"""Which `reply_to` topics copies may be written to: requesters choose them. One that is not there would hold a
transaction up, and one that may not be written to takes its partition away for seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from xgr_stream.metrics import Metrics

LOOK_UP_TIMEOUT_S = 2.0
REMEMBERED_S = 60.0
"""How long a topic counts as there, or not, before it is looked up again."""
MAX_TOPICS = 10_000
"""Names remembered."""
MAX_LOOK_UPS = 64
"""Names that are looked up at the same time: while one that is not there is waited for, all metadata that the worker
asks for has it, and others wait for that."""


def is_known(client: AIOKafkaClient, topic: str) -> bool:
    return client.cluster.partitions_for_topic(topic) is not None


def forget_unknown(client: AIOKafkaClient, topic: str) -> None:
    """Ask for a topic no more that was looked up and is not there: aiokafka would, with all metadata, for ever."""
    if not is_known(client, topic):
        client._topics.discard(topic)


class Copies:
    """Topics that were looked up, and whether they took copies."""

    def __init__(self, producer: AIOKafkaProducer, metrics: Metrics) -> None:
        self._producer = producer
        self._metrics = metrics
        self._found: dict[str, tuple[bool, float]] = {}
        self._looking: dict[str, asyncio.Task[bool]] = {}
        self._written: set[str] = set()
        """Topics that took copies in a transaction that was committed."""
        self._wary_until = 0.0

    def known(self, topic: str) -> bool:
        """Whether it was looked up lately."""
        _, until = self._found.get(topic, (False, 0.0))
        return time.monotonic() < until

    def takes(self, topic: str) -> bool:
        """Whether a copy may be written to it; counts one that may not."""
        takes, _ = self._found.get(topic, (False, 0.0))
        if takes and topic not in self._written:
            takes = time.monotonic() >= self._wary_until
        if not takes:
            self._metrics.reply_copies_failed.inc()
        return takes

    def written(self, topics: Iterable[str]) -> None:
        """A transaction with copies to these was committed."""
        if len(self._written) >= MAX_TOPICS:
            self._written.clear()
        self._written.update(topics)

    def refuse(self, topics: Iterable[str]) -> None:
        """A transaction with copies to these failed: write none for a while, and none to topics that have not taken any
        yet, of which there may be more like these."""
        self._wary_until = time.monotonic() + REMEMBERED_S
        for topic in topics:
            self._written.discard(topic)
            self._note(topic, False)

    async def look_up(self, topic: str) -> None:
        """Once for all who ask at the same time; not at all, and it takes none now, while too many others are."""
        if self.known(topic):
            return
        task = self._looking.get(topic)
        if task is None:
            if len(self._looking) >= MAX_LOOK_UPS:
                return
            task = self._looking[topic] = asyncio.create_task(self._exists(topic))
            task.add_done_callback(lambda _: self._looking.pop(topic, None))
        self._note(topic, await asyncio.shield(task))

    async def _exists(self, topic: str) -> bool:
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
                return bool(await self._producer.partitions_for(topic))
        except (KafkaError, TimeoutError):
            forget_unknown(self._producer.client, topic)
            return False

    def _note(self, topic: str, takes: bool) -> None:
        if len(self._found) >= MAX_TOPICS:
            self._found.clear()
        self._found[topic] = (takes, time.monotonic() + REMEMBERED_S)
