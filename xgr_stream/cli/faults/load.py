"""Events and requests of made-up users, written to the topics as clients would, and noted in the truth."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from xgr_stream.cli.faults.plan import Soak
from xgr_stream.cli.faults.truth import CORRUPT_HEADER, Truth
from xgr_stream.cli.faults.views import FirstCopies, Views, glance, view
from xgr_stream.config import MAX_BATCH_BYTES, TopicNames
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.connection import Connection, record_of, stop_client
from xgr_stream.stream.partitioner import by_key
from xgr_stream.types import ItemFilter, RecommendRequest

TICK_S = 0.02
FOLLOW_MS = 200
WRITE_TIMEOUT_MS = 180_000
"""Longer than any broker is away: an event that may or may not have been written would spoil the truth."""
NUM_ITEMS = 70
"""Items that events name: the tiny catalog's 60, and some that it does not know."""
STRANGERS = 0.03
"""Part of the requests that ask for a user without events."""
UNSEEN_ONLY = 0.2
"""Part of the requests that exclude what the user has seen."""
GLANCES = 0.1
"""As many of the application's records that are no events, for each that is one."""
AFTER_OWN_EVENT = 0.3
"""Part of the requests that wait for the user's last event (`min_offset`), where the load knows its offset."""
TIMEOUTS_MS = (500, 2_000, 10_000, 30_000)
TOO_LARGE = MAX_BATCH_BYTES + 1


class Load:
    """Writes at the plan's rates from `run` to `end`, which returns when all is durable."""

    def __init__(
        self, soak: Soak, connection: Connection, topics: TopicNames, views: Views | None, truth: Truth
    ) -> None:
        self._soak = soak
        self._connection = connection
        self._topics = topics
        self._views = views
        self._truth = truth
        self._chance = random.Random(soak.seed + 1)
        self._users = [f"user-{n}" for n in range(soak.users)]
        self._weights = [1 / (n + 3) for n in range(soak.users)]
        self._last_offset: dict[str, int] = {}
        self._writes: set[asyncio.Future[Any]] = set()
        self._failed: list[BaseException] = []
        self._place = by_key("murmur2", soak.partitions)
        self._producer: AIOKafkaProducer | None = None
        self._compressing: AIOKafkaProducer | None = None
        self._ended = False

    async def start(self) -> None:
        self._producer = await self._connection.start_producer(request_timeout_ms=WRITE_TIMEOUT_MS)
        self._compressing = await self._connection.start_producer(
            request_timeout_ms=WRITE_TIMEOUT_MS,
            compression_type="zstd",
            max_request_size=2 * TOO_LARGE,
            max_batch_size=2 * TOO_LARGE,
        )

    async def stop(self) -> None:
        for producer in (self._producer, self._compressing):
            if producer is not None:
                await stop_client(producer)

    async def run(self) -> None:
        """Until `end`. Not to be cancelled: what was noted must be written."""
        await asyncio.gather(self._write_all(), self._follow_copies())

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        started, events, requests = loop.time(), 0, 0
        while not self._ended:
            due = loop.time() - started
            while events < due * self._soak.events_per_s:
                events += 1
                await self._write_event()
            while requests < due * self._soak.requests_per_s:
                requests += 1
                await self._write_request(requests)
            await asyncio.sleep(TICK_S)

    async def end(self, running: asyncio.Task[None]) -> None:
        """Raises what kept a record from being written: then there is no truth to hold to."""
        self._ended = True
        await running
        while self._writes:
            await asyncio.wait(self._writes)
        if self._failed:
            raise self._failed[0]

    # What can be read

    async def _write_event(self) -> None:
        user = self._chance.choices(self._users, self._weights)[0]
        event = self._truth.next_event(user, f"item-{self._chance.randrange(NUM_ITEMS)}")
        if self._views is not None:
            if self._chance.random() < GLANCES:
                await self._write_view(user, glance())
            await self._write_view(user, view(event.user_id, event.item_id, event.action))
            return
        message = codec.encode(protocol.event_message(event), self._chance.choice(("msgpack", "json")))

        def note(offset: int) -> None:
            self._last_offset[user] = offset

        await self._write(self._topics.events, user, message, note=note)

    async def _follow_copies(self) -> None:
        """Where a user's last event lies that was copied."""
        if self._views is None:
            return
        first = FirstCopies()
        consumer = self._connection.consumer(auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self._topics.events, number) for number in range(self._soak.partitions)])
            while not self._ended:
                for batch in (await consumer.getmany(timeout_ms=FOLLOW_MS)).values():
                    for record in filter(first.counts, map(record_of, batch)):
                        if all(name != CORRUPT_HEADER for name, _ in record.headers):
                            self._last_offset[(record.key or b"").decode()] = record.offset
        finally:
            await stop_client(consumer)

    async def _write_request(self, number: int) -> None:
        chance = self._chance
        user = chance.choices(self._users, self._weights)[0]
        if chance.random() < STRANGERS:
            user = f"stranger-{number}"
        request = RecommendRequest(
            f"request-{number}",
            user,
            k=chance.choice((1, 5, 10)),
            filter=ItemFilter(
                exclude=tuple(f"item-{chance.randrange(60)}" for _ in range(chance.choice((0, 0, 3)))),
                seen=chance.random() < UNSEEN_ONLY,
            ),
            timeout_ms=chance.choice(TIMEOUTS_MS),
            min_offset=self._last_offset.get(user) if chance.random() < AFTER_OWN_EVENT else None,
        )
        self._truth.requests[request.request_id] = request
        await self._write(self._topics.requests, user, codec.encode(protocol.request_message(request), "msgpack"))

    # What can't

    async def corrupt(self, count: int) -> None:
        """Write messages among the others that must become dead letters or error responses."""
        await self._corrupt_batch()
        for number in range(count):
            user = self._chance.choice(self._users)
            self._truth.corrupt += 1
            if self._views is not None and self._chance.random() < 0.5:
                what, value = self._chance.choice((("noise", self._chance.randbytes(40)), ("no page", b"{}")))
                await self._write_view(user, value, corrupt=what)
                continue
            topic, what, value, shift = self._corrupt_message(user)
            await self._write(topic, user, value, corrupt=what, shift=shift)
            request_id = f"faulty-{len(self._truth.refusable)}"
            self._truth.refusable.add(request_id)
            fault = {"k": "ten"} if number % 2 else {"min_offset": -1}
            fields = {"v": 1, "request_id": request_id, "user_id": user, **fault}
            await self._write(self._topics.requests, user, codec.encode(fields, "msgpack"))

    async def _corrupt_batch(self) -> None:
        """One of some kilobytes that decompress to more than a worker reads."""
        topic = self._chance.choice((self._topics.events, self._topics.requests))
        partition = self._chance.randrange(self._soak.partitions)
        self._truth.corrupt += 1
        await self._send(topic, partition, b"", bytes(TOO_LARGE), corrupt="too large", by=self._compressing)

    def _corrupt_message(self, user: str) -> tuple[str, str, bytes, int]:
        """Topic, what is wrong, the bytes, and how many partitions from its own it goes to."""
        events, requests = self._topics.events, self._topics.requests
        good = codec.encode({"v": 1, "user_id": user, "item_id": "item-1", "action": "misplaced"}, "msgpack")
        return self._chance.choice(
            (
                (events, "noise", self._chance.randbytes(40), 0),
                (events, "another version", codec.encode({"v": 9, "item_id": "item-1"}, "json"), 0),
                (events, "no item", codec.encode({"v": 1, "user_id": user}, "msgpack"), 0),
                (events, "half a message", good[:-7], 0),
                (events, "another's partition", good, 1),
                (requests, "noise", b"\xc1" + self._chance.randbytes(40), 0),
                (requests, "no id", codec.encode({"v": 1, "user_id": user}, "msgpack"), 0),
                (requests, "nothing", b"", 0),
            )
        )

    async def _write_view(self, user: str, value: bytes, *, corrupt: str | None = None) -> None:
        """All of a user's in one partition, or nobody could say in which order they came."""
        if self._views is None:
            raise RuntimeError("this run has no topic of views")
        key = f"session-of-{user}".encode()
        partition = by_key("murmur2", self._views.partitions)(key)
        await self._send(self._views.topic, partition, key, value, corrupt=corrupt)

    async def _write(
        self,
        topic: str,
        user: str,
        value: bytes,
        *,
        note: Callable[[int], None] | None = None,
        corrupt: str | None = None,
        shift: int = 0,
    ) -> None:
        key = user.encode()
        partition = (self._place(key) + shift) % self._soak.partitions
        await self._send(topic, partition, key, value, note=note, corrupt=corrupt)

    async def _send(
        self,
        topic: str,
        partition: int,
        key: bytes,
        value: bytes,
        *,
        note: Callable[[int], None] | None = None,
        corrupt: str | None = None,
        by: AIOKafkaProducer | None = None,
    ) -> None:
        """Hand a record to the producer, or to another; `note` is called with its offset when it is durable."""
        producer = by or self._producer
        if producer is None:
            raise RuntimeError("the load must be started before it writes")
        headers = [] if corrupt is None else [(CORRUPT_HEADER, corrupt.encode())]
        written = await producer.send(topic, value, key, partition=partition, headers=headers)
        self._writes.add(written)
        written.add_done_callback(partial(self._on_written, note))

    def _on_written(self, note: Callable[[int], None] | None, future: asyncio.Future[Any]) -> None:
        self._writes.discard(future)
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            self._failed.append(error)
        elif note is not None and future.result().offset >= 0:  # unknown when only a retry was acknowledged
            note(future.result().offset)
