"""The load generator: its users repeat, its rates hold, and an error ends nothing."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any, cast

import pytest
from click.testing import CliRunner

from examples.load_generator import Load, Users, main
from xgr_stream import CacheState, RecommendClient, RecommendResponse, Status
from xgr_stream.errors import DeadlineExceeded

ITEMS = [f"item-{number}" for number in range(200)]


class StubClient:
    """Takes every event, and answers every third request too late."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.requests = 0

    async def send_event(self, user_id: str, item_id: str) -> None:
        self.events.append((user_id, item_id))

    async def recommend(self, user_id: str, k: int, *, timeout: float) -> RecommendResponse:
        self.requests += 1
        if self.requests % 3 == 0:
            raise DeadlineExceeded("no response came within 1000 ms")
        return RecommendResponse("r", user_id, Status.OK, cache=CacheState.WARM)


async def under_load(client: StubClient, seconds: float, events: float, requests: float) -> dict[str, Any]:
    load = Load(cast(RecommendClient, client), Users(ITEMS, 20, seed=1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await load.run(events, requests)
    return load.summary()


def test_the_same_seed_gives_the_same_users() -> None:
    one, other = Users(ITEMS, 20, seed=3), Users(ITEMS, 20, seed=3)
    for _ in range(100):
        user = one.somebody()
        assert user == other.somebody()
        assert one.next_item(user) == other.next_item(user)


def test_users_and_items_are_in_range_and_the_first_are_busier() -> None:
    users = Users(ITEMS, 20, seed=0)
    drawn = [users.somebody() for _ in range(2_000)]
    assert set(drawn) <= set(range(20))
    assert sum(user < 5 for user in drawn) > sum(user >= 15 for user in drawn)
    assert {users.next_item(user) for user in islice(drawn, 500)} <= set(ITEMS)


async def test_rates_hold_and_an_error_is_an_outcome() -> None:
    client = StubClient()
    summary = await under_load(client, 1.0, events=400, requests=200)

    assert 300 < len(client.events) < 500
    assert 130 < client.requests < 270
    assert summary["outcomes"] == {
        "ok": client.requests - client.requests // 3,
        "deadline_exceeded": client.requests // 3,
    }
    assert summary["cache"] == {"warm": summary["outcomes"]["ok"]}
    assert summary["p50_ms"] <= summary["p99_ms"]


async def test_a_rate_of_zero_sends_nothing() -> None:
    client = StubClient()
    load = Load(cast(RecommendClient, client), Users(ITEMS, 20, seed=1))
    await load.run(0, 0)
    assert (client.events, client.requests) == ([], 0)
    assert load.summary()["p99_ms"] is None


def test_the_command_says_what_it_takes() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "--events-per-second" in result.output
