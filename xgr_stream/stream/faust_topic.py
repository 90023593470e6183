"""What our agents are made of: they read bytes of a Faust topic, in micro-batches, and begin again at a rebalance."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import faust
from faust import Topic
from faust.types import EventT
from mode.supervisors import OneForOneSupervisor

from xgr_stream.stream.records import Headers

Event = EventT[Any]

MAX_BATCH = 100


async def in_batches(stream: Any, take: Callable[[list[Event]], Awaitable[None]]) -> None:
    """Have `take`, which must not raise, called with the events of an agent's stream, not acknowledged: with those that
    came during one call by the next one.

    No event waits for another to come. A rebalance drops what an agent has not been handed yet, and waits for what it
    has; so does the app's end.
    """
    came: asyncio.Queue[Event] = asyncio.Queue(MAX_BATCH)

    async def taking() -> None:
        while True:
            events = [await came.get()]
            while not came.empty():
                events.append(came.get_nowait())
            await take(events)
            del events  # Faust waits for as long as anything refers to one

    async with asyncio.TaskGroup() as tasks:
        until_the_stream_ends = tasks.create_task(taking())
        async for event in stream.noack().events():
            await came.put(event)
            del event
        until_the_stream_ends.cancel()


class RawTopic(Topic):
    """A topic whose agents get bytes: what they hold is for us to judge.

    They get every record, whatever other agents the app has on the topic. When one of those can't decode a record,
    Faust acknowledges it for all agents that it has not been handed to yet, and throws into them instead: the record
    would be gone without a trace, depending on the order of a set.
    """

    async def on_key_decode_error(self, exc: Exception, message: Any) -> None:
        await self._take_back(message)

    async def on_value_decode_error(self, exc: Exception, message: Any) -> None:
        await self._take_back(message)

    async def _take_back(self, message: Any) -> None:
        """Deliver the record after all; its offset waits for our acknowledgement again. Faust's conductor comes here
        in the same step of the loop in which it acknowledged, so nothing was committed in between."""
        consumer: Any = self.app.consumer
        if message.acked:
            message.acked = False
            if message.offset in consumer._acked_index[message.tp]:
                consumer._acked_index[message.tp].discard(message.offset)
                consumer._acked[message.tp].remove(message.offset)
                consumer._n_acked -= 1
            consumer._unacked_messages.add(message)
        message.incref()
        await self.put(await self.decode(message))


class Supervisor(OneForOneSupervisor):
    """Starts our agents' actors again: all of them at once, when a rebalance cancels them. Of the 100 restarts a second
    that mode allows its bucket holds one at a time, so that a second one within 10 ms would end the process."""

    def __init__(self, *services: Any, **options: Any) -> None:
        super().__init__(*services, **options | {"over": options["max_restarts"]})


def headers_of(message: Any) -> Headers:
    """Of a message of Faust's."""
    headers = message.headers or ()
    return tuple(headers.items() if isinstance(headers, dict) else headers)


def raw_topic(app: faust.App, name: str) -> RawTopic:
    return RawTopic(app, topics=[name], key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
