"""A delivery that does not wait makes no task; one that does goes on from where it has come to, as Faust has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from mode import Service
from mode.utils.locks import Event

from xgr_stream.stream.faust_delivery import deliver_at_once


class Consumer(Service):
    """As far as Faust's consumer waits for its deliveries."""

    def __init__(self) -> None:
        super().__init__()
        self.suspend_flow = Event()

    async def deliver(self, delivery: Coroutine[Any, Any, Any]) -> Any:
        return await self.wait_first(delivery, self.suspend_flow.wait())


@pytest.fixture(params=["Faust's own", "ours"])
async def consumer(request: pytest.FixtureRequest) -> AsyncIterator[Consumer]:
    """Whatever is said of a delivery here is true of Faust's own way, too."""
    consumer = Consumer()
    if request.param == "ours":
        app: Any = SimpleNamespace(consumer=consumer)
        deliver_at_once(app)
        deliver_at_once(app)
    async with consumer:
        yield consumer


async def test_a_delivery_that_does_not_wait_is_done_without_a_task() -> None:
    consumer = Consumer()
    deliver_at_once(SimpleNamespace(consumer=consumer))  # type: ignore[arg-type]
    async with consumer:
        tasks = asyncio.all_tasks()

        async def delivery() -> set[asyncio.Task[Any]]:
            return asyncio.all_tasks()

        found = await consumer.deliver(delivery())
        assert found.results == [tasks]
        assert not found.stopped


async def test_a_delivery_that_waits_goes_on_where_it_was(consumer: Consumer) -> None:
    came: list[int] = []
    gate = asyncio.Event()

    async def delivery() -> str:
        came.append(0)
        await asyncio.sleep(0)
        came.append(1)
        await gate.wait()
        came.append(2)
        return "done"

    delivering = asyncio.create_task(consumer.deliver(delivery()))
    for _ in range(5):
        await asyncio.sleep(0)
    assert came == [0, 1]
    gate.set()
    found = await delivering
    assert found.results == ["done"]
    assert came == [0, 1, 2]


@pytest.mark.parametrize("waits", [False, True])
async def test_what_a_delivery_raises_is_raised(consumer: Consumer, waits: bool) -> None:
    async def delivery() -> None:
        if waits:
            await asyncio.sleep(0)
        raise LookupError("no such partition")

    with pytest.raises(LookupError, match="no such partition"):
        await consumer.deliver(delivery())


async def test_a_rebalance_breaks_off_a_delivery_that_waits(consumer: Consumer) -> None:
    ended: list[str] = []

    async def delivery() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    delivering = asyncio.create_task(consumer.deliver(delivery()))
    for _ in range(3):
        await asyncio.sleep(0)
    consumer.suspend_flow.set()
    found = await delivering
    for _ in range(3):
        await asyncio.sleep(0)
    assert ended == ["cancelled"]
    assert found.results == [True]


async def test_a_consumer_that_stops_breaks_it_off_too(consumer: Consumer) -> None:
    delivering = asyncio.create_task(consumer.deliver(_for_ever()))
    for _ in range(3):
        await asyncio.sleep(0)
    await consumer.stop()
    assert (await delivering).stopped


async def _for_ever() -> None:
    await asyncio.Event().wait()
