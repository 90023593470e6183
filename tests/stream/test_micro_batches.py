"""What an agent of ours reads in micro-batches: everything that it was handed, whether more comes or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import chain
from typing import Any

from xgr_stream.stream.faust_topic import MAX_BATCH, in_batches


class Agent:
    """Reads a stream that hands it these, and then nothing more until it is told to `end`."""

    def __init__(self, handed: Iterable[Any]) -> None:
        self.took: list[list[Any]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.end = asyncio.Event()
        self._handed = handed
        self.reading = asyncio.create_task(in_batches(self, self._take))

    def noack(self) -> Agent:
        return self

    async def events(self) -> AsyncIterator[Any]:
        for event in self._handed:
            yield event
        await self.end.wait()

    async def _take(self, events: list[Any]) -> None:
        self.took.append(list(events))
        await self.may_go_on.wait()


async def until_idle() -> None:
    for _ in range(10 * MAX_BATCH):
        await asyncio.sleep(0)


async def test_what_was_handed_over_does_not_wait_for_more() -> None:
    """A rebalance drops what the agent was to get next, and waits for what it has."""
    agent = Agent("abc")
    await until_idle()
    assert list(chain(*agent.took)) == ["a", "b", "c"]
    agent.end.set()
    await agent.reading


async def test_what_comes_during_a_call_is_taken_together_and_in_order() -> None:
    agent = Agent(range(3 * MAX_BATCH))
    agent.may_go_on.clear()
    await until_idle()
    assert len(agent.took) == 1
    agent.may_go_on.set()
    await until_idle()
    assert list(chain(*agent.took)) == list(range(3 * MAX_BATCH))
    assert max(map(len, agent.took)) == MAX_BATCH
    agent.reading.cancel()
    await asyncio.wait([agent.reading])
    assert agent.reading.cancelled()
