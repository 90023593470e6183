"""Requests at a steady rate while a second worker joins and leaves: what became of each, and how long nobody answered.

Workers are processes without a model, whose answers name them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xgr_stream.cli.faults.fleet import Fleet, WorkerProcess
from xgr_stream.client import RecommendClient
from xgr_stream.config import TopicNames
from xgr_stream.errors import XgrError
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.partitioner import partitioner
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.types import RecommendRequest

EVENTS_EACH = 3
REQUEST_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class Rate:
    """What is asked, of whom, for how long."""

    requests_per_s: float
    seconds: float
    """Of each phase."""
    users: int
    partitions: int
    session_timeout_s: float


class Answer(NamedTuple):
    """What became of one request; times on the loop's clock."""

    partition: int
    asked_at: float
    answered_at: float
    worker: str
    """Empty: no answer with items."""
    error: str
    """What came instead."""


class Phase(NamedTuple):
    name: str
    start: float
    end: float


class Silence(NamedTuple):
    """From the last answer of a partition's old owner to the first of its new one."""

    partition: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Handover:
    """All that happened."""

    answers: list[Answer]
    phases: list[Phase]
    joined: list[Silence]
    left: list[Silence]
    leave_s: float
    """How long the second worker took from SIGTERM to its end."""


class Stage:
    """One run: users with histories, a worker, and a second one that comes and goes."""

    def __init__(self, connection: Connection, rate: Rate, folder: Path) -> None:
        self._connection = connection
        self._rate = rate
        own = uuid.uuid4().hex[:6]
        self._topics = TopicNames(
            *(f"{name}-{own}" for name in ("events", "requests", "responses", "dead", "log", "catalog"))
        )
        self._group = f"handover-{own}"
        self._fleet = Fleet(self._command, folder)
        self._answers: list[Answer] = []
        self._phases: list[Phase] = []
        self._place = partitioner("murmur2", rate.partitions)
        self._asking: set[asyncio.Task[None]] = set()

    async def run(self) -> Handover:
        rate, fleet = self._rate, self._fleet
        await ensure_topics(self._connection, self._topics, rate.partitions)
        async with RecommendClient(self._connection, topics=self._topics) as client:
            try:
                first = await self._started()
                await asyncio.gather(
                    *(client.send_event(user, f"item-{n}") for user in self._users() for n in range(EVENTS_EACH))
                )
                asking = asyncio.create_task(self._ask(client))
                await self._phase("one worker", rate.seconds)
                second, joined_at = await self._join()
                await self._phase("two workers", rate.seconds)
                left_at = asyncio.get_running_loop().time()
                leaving = asyncio.create_task(fleet.leave(second))
                await self._phase("it leaves", rate.seconds)
                await self._phase("one worker again", rate.seconds)
                asking.cancel()
                await asyncio.wait([asking])
                await asyncio.gather(*self._asking)
                joined = silences(self._answers, str(first), str(second), joined_at, left_at)
                left = silences(self._answers, str(second), str(first), left_at, float("inf"))
                return Handover(self._answers, self._phases, joined, left, await leaving)
            finally:
                await fleet.stop()

    async def _started(self) -> WorkerProcess:
        worker = await self._fleet.start()
        if not await self._fleet.ready(worker, READY_TIMEOUT_S):
            raise RuntimeError(f"{worker} is not ready within {READY_TIMEOUT_S:.0f} s; it said: {worker.said()}")
        return worker

    async def _join(self) -> tuple[WorkerProcess, float]:
        """The second worker starts; the phase lasts until it has served its partitions for a while."""
        started_at = asyncio.get_running_loop().time()
        second = await self._started()
        await asyncio.sleep(self._rate.seconds)
        self._phases.append(Phase("a second starts and joins", started_at, asyncio.get_running_loop().time()))
        return second, started_at

    async def _phase(self, name: str, seconds: float) -> None:
        started_at = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        self._phases.append(Phase(name, started_at, asyncio.get_running_loop().time()))

    def _users(self) -> Iterable[str]:
        return (f"user-{n}" for n in range(self._rate.users))

    async def _ask(self, client: RecommendClient) -> None:
        """By the clock, whether or not earlier requests are answered."""
        loop, random = asyncio.get_running_loop(), np.random.default_rng(0)
        due, number = loop.time(), 0
        while True:
            due += float(random.exponential(1 / self._rate.requests_per_s))
            # Of nothing, too: those who wait for answers must have their turn while this one is behind.
            await asyncio.sleep(max(0.0, due - loop.time()))
            number += 1
            user = f"user-{int(random.integers(self._rate.users))}"
            task = asyncio.create_task(self._ask_one(client, f"request-{number}", user, due))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask_one(self, client: RecommendClient, request_id: str, user: str, due: float) -> None:
        request = RecommendRequest(request_id, user, timeout_ms=round(REQUEST_TIMEOUT_S * 1000))
        worker, error = "", ""
        try:
            response = await client.respond(request, timeout=REQUEST_TIMEOUT_S + 5)
            worker, error = response.model_version, response.error or ""
        except XgrError as failure:
            error = failure.code
        partition = self._place(user.encode()) if self._place is not None else 0
        self._answers.append(Answer(partition, due, asyncio.get_running_loop().time(), worker, error))

    def _command(self, port: int) -> Sequence[str]:
        settings = {
            "broker": self._connection.bootstrap,
            "group": self._group,
            "topics": asdict(self._topics),
            "name": f"worker {len(self._fleet.workers) + 1}",
            "port": port,
            "session_timeout_s": self._rate.session_timeout_s,
        }
        return [sys.executable, "-m", "xgr_stream.cli.faults.null_worker", json.dumps(settings)]


def silences(answers: Iterable[Answer], old: str, new: str, start: float, end: float) -> list[Silence]:
    """Of each partition that `new` took over from `old` between two times: how long nobody answered."""
    first: dict[int, float] = {}
    for answer in answers:
        if answer.worker == new and start <= answer.answered_at < end:
            first[answer.partition] = min(answer.answered_at, first.get(answer.partition, answer.answered_at))
    last: dict[int, float] = {}
    for answer in answers:
        if answer.worker == old and answer.answered_at <= first.get(answer.partition, -1.0):
            last[answer.partition] = max(answer.answered_at, last.get(answer.partition, start))
    return [Silence(partition, first[partition] - last[partition]) for partition in sorted(last)]


async def handover(connection: Connection, rate: Rate) -> Handover:
    """Run it on brokers that are there."""
    with tempfile.TemporaryDirectory(prefix="xgr-handover-") as folder:
        return await Stage(connection, rate, Path(folder)).run()
