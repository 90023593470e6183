"""Replays users' events through the broker, and asks before each event that the training never saw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from examples.movielens.data import HELD_OUT, MovieLens, UserEvents
from xgr_stream import RecommendClient, RecommendResponse, XgrError
from xgr_stream.client import EventPosition

IN_FLIGHT = 64
"""Events and requests on their way at once: few enough that the producer never holds one back, so that each user's
events stay in order."""

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Step:
    """One event of the replay."""

    time: int
    user: UserEvents
    number: int

    @property
    def scored(self) -> bool:
        return self.number >= len(self.user.items) - HELD_OUT


@dataclass(frozen=True, slots=True)
class Answer:
    """What was recommended to a user before the event that came next."""

    user: UserEvents
    number: int
    """The event's number: the answer saw the user's events before it."""
    response: RecommendResponse | None
    """None: the request failed, for the reason that `error` gives."""
    latency_ms: float
    """From sending the request to having the answer, the broker's time included."""
    error: str = ""

    @property
    def history(self) -> np.ndarray:
        return self.user.items[: self.number]

    @property
    def items(self) -> list[str]:
        """The recommended items' ids, best first."""
        return [] if self.response is None else [item.item_id for item in self.response.items]

    @property
    def target(self) -> int:
        return int(self.user.items[self.number])


@dataclass(frozen=True, slots=True)
class Replayed:
    answers: list[Answer]
    last: dict[str, EventPosition]
    """Where each user's last event came to lie."""
    num_events: int
    seconds: float


def timeline(users: Sequence[UserEvents]) -> list[Step]:
    """All events of these users in the order in which they happened."""
    steps = [Step(int(time), user, number) for user in users for number, time in enumerate(user.times)]
    return sorted(steps, key=lambda step: step.time)  # stable: a user's events of one second keep their order


class Replay:
    """One pass over a timeline. Users' events overlap on their way; a user's own stay in order, and a scored one waits
    until the event before it was written, was seen (`after=`), and the request was answered."""

    def __init__(self, data: MovieLens, client: RecommendClient, k: int) -> None:
        self._data, self._client, self._k = data, client, k
        self._last: dict[str, asyncio.Task[EventPosition]] = {}
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._answers: list[Answer] = []

    async def run(self, steps: Sequence[Step], on_event: Callable[[], object]) -> Replayed:
        def done(task: asyncio.Task[EventPosition]) -> None:
            self._slots.release()
            on_event()

        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                await self._slots.acquire()
                user_id = step.user.user_id
                take = self._take_scored(step, self._last[user_id]) if step.scored else self._send(step)
                self._last[user_id] = tasks.create_task(take)
                self._last[user_id].add_done_callback(done)
        last = {user_id: task.result() for user_id, task in self._last.items()}
        return Replayed(self._answers, last, len(steps), time.perf_counter() - started)

    async def _take_scored(self, step: Step, before: asyncio.Task[EventPosition]) -> EventPosition:
        after = await before
        self._answers.append(await ask(self._data, self._client, step.user, step.number, self._k, after=after))
        return await self._send(step)

    async def _send(self, step: Step) -> EventPosition:
        item_id = self._data.movies[step.user.items[step.number]].item_id
        return await self._client.send_event(step.user.user_id, item_id, timestamp_ms=step.time * 1000)


async def ask(
    data: MovieLens,
    client: RecommendClient,
    user: UserEvents,
    number: int,
    k: int,
    *,
    after: EventPosition | None = None,
) -> Answer:
    """Ask for the user's next movie after their first `number` events, with those excluded."""
    seen = data.item_ids(user.items[:number])
    started = time.perf_counter()
    try:
        response = await client.recommend(user.user_id, k, exclude=seen, timeout=TIMEOUT_S, after=after)
    except XgrError as error:
        return Answer(user, number, None, (time.perf_counter() - started) * 1000, str(error))
    latency_ms = (time.perf_counter() - started) * 1000
    if response.event_count != number:
        raise RuntimeError(f"the answer for user {user.user_id} saw {response.event_count} events, expected {number}")
    return Answer(user, number, response, latency_ms)
