"""What the load asks for when its events are copies."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from xgr_stream.cli.faults.load import Load
from xgr_stream.cli.faults.plan import Soak
from xgr_stream.cli.faults.truth import CORRUPT_HEADER, Truth
from xgr_stream.cli.faults.views import Views
from xgr_stream.config import TopicNames
from xgr_stream.history import SourcePosition
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.source_header import source_header

EVENTS = TopicNames().events


class Paper:
    """Brokers, a producer and a consumer: `copies` are what is in partition 0 of the events topic."""

    def __init__(self, copies: list[ConsumerRecord[bytes, bytes]]) -> None:
        self._copies = copies
        self.stopped = False

    async def start_producer(self, **options: Any) -> Paper:
        return self

    def consumer(self, **options: Any) -> Paper:
        assert options["auto_offset_reset"] == "earliest"
        return self

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert partitions == [TopicPartition(EVENTS, number) for number in range(4)]

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    async def getmany(self, *, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        await asyncio.sleep(0.001)
        copies, self._copies = self._copies, []
        return {TopicPartition(EVENTS, 0): copies} if copies else {}

    async def send(self, *record: Any, **options: Any) -> asyncio.Future[Any]:
        written: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written


def copy(offset: int, user: str, *headers: tuple[str, bytes]) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord(EVENTS, 0, offset, 0, 0, user.encode(), b"", None, 0, 0, headers)


def of(offset: int) -> tuple[str, bytes]:
    return source_header(SourcePosition("views", 0, offset))


async def test_requests_wait_for_an_event_that_was_copied_before() -> None:
    """For the copy that counted: one that was written again is no event that an answer could name."""
    copies = [copy(3, "user-0", of(7)), copy(4, "user-1", of(8)), copy(5, "user-0", of(7))]
    copies.append(copy(6, "user-1", (CORRUPT_HEADER, b"noise")))
    truth, brokers = Truth(), Paper(copies)
    soak = Soak(1, users=2, events_per_s=100.0, requests_per_s=2_000.0, copies=True)
    load = Load(soak, cast("Connection", brokers), TopicNames(), Views("views", 5), truth)
    await load.start()
    running = asyncio.create_task(load.run())
    await asyncio.sleep(0.3)
    await load.end(running)
    waiting = {(request.user_id, request.min_offset) for request in truth.requests.values()} - {
        (request.user_id, None) for request in truth.requests.values()
    }
    assert waiting == {("user-0", 3), ("user-1", 4)}
    assert brokers.stopped
