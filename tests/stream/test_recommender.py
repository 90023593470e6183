"""The client that a recommender has for other workers' users, with the client played by the test."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stream.waiting import settle
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.errors import RequestFailed, ShuttingDown
from xgr_stream.metrics import Metrics
from xgr_stream.stream.recommender import Recommender
from xgr_stream.types import RecommendRequest, RecommendResponse, Status

REQUEST = RecommendRequest("one", "user-1")


class Client:
    made: list[Client]
    may_start: asyncio.Event

    def __init__(self, _: object, **options: object) -> None:
        self.stopped = self.failed = False
        self.made.append(self)

    async def start(self) -> None:
        await self.may_start.wait()

    async def respond(self, request: RecommendRequest, *, timeout: float) -> RecommendResponse:
        if self.failed:
            raise RequestFailed("responses can't be read any more")
        return RecommendResponse(request.request_id, request.user_id, Status.OK)

    async def stop(self) -> None:
        self.stopped = True


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr("xgr_stream.stream.recommender.RecommendClient", Client)
    Client.made, Client.may_start = [], asyncio.Event()
    return Client


@pytest.fixture
def recommender() -> Recommender:
    recommender = Recommender(StreamConfig(), Metrics())
    recommender.bind(runtime())
    return recommender


def runtime() -> Any:
    """Of a worker that has no users."""
    return SimpleNamespace(processor=SimpleNamespace(owns=lambda _: False), setup=SimpleNamespace(connection=None))


@pytest.mark.parametrize("again", [False, True])
async def test_a_client_that_starts_while_the_app_stops_is_stopped(
    client: type[Client], recommender: Recommender, again: bool
) -> None:
    """And none is started after it. The app's end waits for neither: without a broker a client may start for ever."""
    asked = [asyncio.create_task(recommender.respond(REQUEST)) for _ in range(2)]
    await settle()
    await asyncio.wait_for(recommender.release(), 10)
    if again:
        recommender.bind(runtime())
    client.may_start.set()
    for task in asked:
        with pytest.raises(ShuttingDown):
            await task
    assert [made.stopped for made in client.made] == [True]
    if again:
        assert (await recommender.respond(REQUEST)).status is Status.OK
        assert [made.stopped for made in client.made] == [True, False]


async def test_a_client_that_reads_no_more_is_replaced(client: type[Client], recommender: Recommender) -> None:
    client.may_start.set()
    await recommender.respond(REQUEST)
    client.made[0].failed = True
    responses = await asyncio.gather(*(recommender.respond(REQUEST) for _ in range(3)))
    assert {response.status for response in responses} == {Status.OK}
    assert [made.stopped for made in client.made] == [True, False]
    await recommender.release()
    assert client.made[1].stopped


async def test_a_client_whose_reader_has_ended_has_failed() -> None:
    client = RecommendClient("127.0.0.1:1")
    assert not client.failed

    async def reads() -> None:
        raise KeyError("a record that nobody can read")

    client._reader = asyncio.create_task(reads())
    assert not client.failed
    await settle()
    assert client.failed
    await client.stop()
    assert not client.failed
