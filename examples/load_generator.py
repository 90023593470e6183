"""Sends events and requests at steady rates, and says what came back.

    python -m examples.load_generator --broker localhost:9092 --catalog models/movielens/catalog.parquet

Users walk through the catalog from one item to a near one, in the order of the semantic IDs, with a jump now and then.
The load is open: arrivals are a Poisson process and wait for no answer, so that a slow worker shows as latency.
Ctrl-C, or --seconds, ends it; the last line is a summary in JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import click

from xgr_stream import Catalog, RecommendClient, XgrError

REPORT_EVERY_S = 5.0
LATENCIES_KEPT = 10_000


class Users:
    """Who does what next. The first users are busier than the last ones."""

    def __init__(self, item_ids: Sequence[str], count: int, seed: int) -> None:
        self._item_ids = item_ids
        self._random = random.Random(seed)
        self._places = [self._random.randrange(len(item_ids)) for _ in range(count)]

    def somebody(self) -> int:
        return int(len(self._places) * self._random.random() ** 2)

    def next_item(self, user: int) -> str:
        """The item that the user takes next: mostly a near one, sometimes any."""
        jump = self._random.random() < 0.1
        step = self._random.randrange(len(self._item_ids)) if jump else round(self._random.gauss(0, 10))
        self._places[user] = (self._places[user] + step) % len(self._item_ids)
        return self._item_ids[self._places[user]]

    async def arrivals(self, per_second: float) -> AsyncIterator[int]:
        """A user at each point of a Poisson process; late ones come at once, so that the rate holds."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while per_second > 0:
            due += self._random.expovariate(per_second)
            await asyncio.sleep(max(0.0, due - loop.time()))
            yield self.somebody()


class Load:
    """Events and requests through one client, and what came of them."""

    def __init__(self, client: RecommendClient, users: Users, *, k: int = 10, timeout_s: float = 1.0) -> None:
        self._client = client
        self._users = users
        self._k = k
        self._timeout_s = timeout_s
        self._began = time.perf_counter()
        self._events = 0
        self._outcomes: Counter[str] = Counter()
        self._cache: Counter[str] = Counter()
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)

    async def run(self, events_per_second: float, requests_per_second: float) -> None:
        """Until cancelled; what is under way then is cancelled too."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_on(group, events_per_second, self._event))
            group.create_task(self._keep_on(group, requests_per_second, self._request))

    async def report(self) -> None:
        """Print the summary so far now and then, until cancelled."""
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            click.echo(json.dumps(self.summary()))

    def summary(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self._began
        ordered = sorted(self._latencies_ms)
        return {
            "seconds": round(seconds, 1),
            "events_per_second": round(self._events / seconds, 1),
            "answers_per_second": round(self._cache.total() / seconds, 1),
            "outcomes": dict(self._outcomes),
            "cache": dict(self._cache),
            "p50_ms": _quantile(ordered, 0.5),
            "p99_ms": _quantile(ordered, 0.99),
        }

    async def _keep_on(
        self, group: asyncio.TaskGroup, per_second: float, action: Callable[[int], Awaitable[None]]
    ) -> None:
        async for user in self._users.arrivals(per_second):
            group.create_task(self._counted(action, user))

    async def _counted(self, action: Callable[[int], Awaitable[None]], user: int) -> None:
        """An error is an outcome like any other: the load goes on."""
        try:
            await action(user)
        except XgrError as error:
            self._outcomes[error.code] += 1

    async def _event(self, user: int) -> None:
        await self._client.send_event(f"user-{user}", self._users.next_item(user))
        self._events += 1

    async def _request(self, user: int) -> None:
        began = time.perf_counter()
        response = await self._client.recommend(f"user-{user}", self._k, timeout=self._timeout_s)
        self._latencies_ms.append((time.perf_counter() - began) * 1e3)
        self._outcomes[str(response.status)] += 1
        self._cache[str(response.cache)] += 1


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    return round(ordered[int(q * (len(ordered) - 1))], 1) if ordered else None


async def _until_told(seconds: float | None) -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(told.wait(), seconds)


async def _generate(broker: str, users: Users, rates: tuple[float, float], k: int, seconds: float | None) -> None:
    async with RecommendClient(broker) as client:
        load = Load(client, users, k=k)
        tasks = [asyncio.create_task(load.run(*rates)), asyncio.create_task(load.report())]
        ended = asyncio.create_task(_until_told(seconds))
        done, pending = await asyncio.wait([*tasks, ended], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()
        click.echo(json.dumps(load.summary()))


@click.command(context_settings={"show_default": True})
@click.option("--broker", default="localhost:9092", help="host:port of the brokers.")
@click.option("--catalog", required=True, type=click.Path(exists=True), help="The catalog that the worker serves.")
@click.option("--users", default=500, type=click.IntRange(1), help="How many users there are.")
@click.option("--events-per-second", default=50.0, type=click.FloatRange(0))
@click.option("--requests-per-second", default=5.0, type=click.FloatRange(0))
@click.option("--k", default=10, type=click.IntRange(1), help="Items that a request asks for.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="When to stop; without it, on a signal.")
@click.option("--seed", default=0)
def main(
    broker: str,
    catalog: str,
    users: int,
    events_per_second: float,
    requests_per_second: float,
    k: int,
    seconds: float | None,
    seed: int,
) -> None:
    """Send events and requests at steady rates, and say what came back."""
    walkers = Users(Catalog.load(catalog).item_ids, users, seed)
    asyncio.run(_generate(broker, walkers, (events_per_second, requests_per_second), k, seconds))


if __name__ == "__main__":
    main()
