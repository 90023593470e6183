"""What a request costs: the same users asked cold and then warm, one at a time, and all of them at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from examples.movielens.data import MovieLens, UserEvents
from examples.movielens.replay import Answer, Replayed, ask
from xgr_stream import CacheState, RecommendClient

CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds: in the worker (waiting, appending, decoding) and end to end (through the broker and back)."""

    p50: float
    p99: float
    end_to_end_p50: float
    end_to_end_p99: float
    requests: int

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Latency:
        worker = [answer.response.stages_ms["total"] for answer in answers if answer.response is not None]
        p50, p99 = np.percentile(worker, [50, 99])
        end_to_end = np.percentile([answer.latency_ms for answer in answers], [50, 99])
        return cls(float(p50), float(p99), float(end_to_end[0]), float(end_to_end[1]), len(worker))


@dataclass(frozen=True, slots=True)
class ColdAndWarm:
    cold: list[Answer]
    warm: list[Answer]

    @property
    def factor(self) -> float:
        """How many times faster the warm requests were in the worker, by their medians."""
        return Latency.of(self.cold).p50 / Latency.of(self.warm).p50

    def longest_third(self) -> ColdAndWarm:
        """Those of the users with the longest histories."""
        order = sorted(range(len(self.cold)), key=lambda index: -self.cold[index].number)
        kept = order[: max(1, len(order) // 3)]
        return ColdAndWarm([self.cold[index] for index in kept], [self.warm[index] for index in kept])


class Prober:
    """Asks for users whose replay is over; each answer sees all of its user's events."""

    def __init__(self, data: MovieLens, client: RecommendClient, replayed: Replayed, k: int) -> None:
        self.answers: list[Answer] = []
        """All that were given, those without a response too."""
        self._data, self._client, self._k = data, client, k
        self._last = replayed.last

    async def cold_and_warm(self, users: Sequence[UserEvents], on_user: Callable[[], object]) -> ColdAndWarm:
        """Ask for each user twice, one request at a time. In a worker that has the histories but not the prefixes the
        first answer is cold and the second warm; the answers say what they were, and only such pairs are kept."""
        pairs = []
        for user in users:
            pairs.append([await self._ask(user) for _ in range(2)])
            on_user()
        kept = [pair for pair in pairs if [_state(answer) for answer in pair] == [CacheState.COLD, CacheState.WARM]]
        if not kept:
            errors = [f": {answer.error}" for answer in self.answers if answer.response is None]
            raise RuntimeError(f"no user was answered cold and then warm{errors[0] if errors else ''}")
        return ColdAndWarm([cold for cold, _ in kept], [warm for _, warm in kept])

    async def requests_per_second(self, users: Sequence[UserEvents]) -> float:
        """Ask for every user once, `CONCURRENCY` requests at a time."""
        slots = asyncio.Semaphore(CONCURRENCY)

        async def one(user: UserEvents) -> None:
            async with slots:
                await self._ask(user)

        started = time.perf_counter()
        await asyncio.gather(*map(one, users))
        return len(users) / (time.perf_counter() - started)

    async def _ask(self, user: UserEvents) -> Answer:
        after = self._last[user.user_id]
        answer = await ask(self._data, self._client, user, len(user.items), self._k, after=after)
        self.answers.append(answer)
        return answer


def _state(answer: Answer) -> CacheState | None:
    return None if answer.response is None else answer.response.cache
