"""What a request costs: the same users asked cold and then warm, one at a time, and all of them at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from examples.movielens.data import MovieLens, UserEvents
from examples.movielens.replay import Answer, ask
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
    def answers(self) -> list[Answer]:
        return self.cold + self.warm


async def cold_and_warm(
    data: MovieLens, client: RecommendClient, users: Sequence[UserEvents], k: int, on_user: Callable[[], object]
) -> ColdAndWarm:
    """Ask for each user twice, one request at a time. For a worker that has the histories but no prefixes: the first
    answer is cold, the second warm; the responses say which they were, and only users for whom both hold count."""
    pairs = []
    for user in users:
        pairs.append([await ask(data, client, user, len(user.items), k) for _ in range(2)])
        on_user()
    kept = [pair for pair in pairs if [_state(answer) for answer in pair] == [CacheState.COLD, CacheState.WARM]]
    return ColdAndWarm([cold for cold, _ in kept], [warm for _, warm in kept])


async def requests_per_second(
    data: MovieLens, client: RecommendClient, users: Sequence[UserEvents], k: int
) -> tuple[list[Answer], float]:
    """Ask for every user once, `CONCURRENCY` requests at a time; (answers, requests per second)."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(user: UserEvents) -> Answer:
        async with slots:
            return await ask(data, client, user, len(user.items), k)

    started = time.perf_counter()
    answers = await asyncio.gather(*map(one, users))
    return answers, len(answers) / (time.perf_counter() - started)


def _state(answer: Answer) -> CacheState | None:
    return None if answer.response is None else answer.response.cache
