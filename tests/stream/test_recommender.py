"""The client that a recommender has for other workers' users, with the client played by the test."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stream.waiting import settle
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.errors import DeadlineExceeded, RequestFailed, ShuttingDown
from xgr_stream.metrics import Metrics
from xgr_stream.stream.recommender import Recommender
from xgr_stream.types import RecommendRequest, RecommendResponse, Status

REQUEST = RecommendRequest("one", "user-1")


class Client:
    made: list[Client]
    may_start: asyncio.Event

    def __init__(self, _: object, **options: object) -> None:
        self.stopped = self.failed = False
        self.timeouts: list[float] = []
        self.made.append(self)

    async def start(self) -> None:
        try:
            await self.may_start.wait()
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def respond(self, request: RecommendRequest, *, timeout: float) -> RecommendResponse:
        self.timeouts.append(timeout)
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
    """And none is started after it. Nobody waits for it then: without a broker a client may start for ever."""
    asked = [asyncio.create_task(recommender.respond(REQUEST)) for _ in range(2)]
    await settle()
    await asyncio.wait_for(recommender.release(), 10)
    if again:
        recommender.bind(runtime())
    for task in asked:
        with pytest.raises(ShuttingDown):
            await asyncio.wait_for(task, 10)
    client.may_start.set()
    assert [made.stopped for made in client.made] == [True]
    if again:
        assert (await recommender.respond(REQUEST)).status is Status.OK
        assert [made.stopped for made in client.made] == [True, False]


async def test_requests_end_at_their_deadlines_while_a_client_starts(
    client: type[Client], recommender: Recommender
) -> None:
    """All wait for the same start, which goes on after them."""
    asked = [asyncio.create_task(recommender.recommend("user-1", timeout=0.05)) for _ in range(6)]
    patient = asyncio.create_task(recommender.recommend("user-1", timeout=60))
    done, _ = await asyncio.wait(asked, timeout=10)
    assert [type(task.exception()) for task in done] == [DeadlineExceeded] * 6
    client.may_start.set()
    assert (await patient).status is Status.OK
    [made] = client.made
    [rest] = made.timeouts
    assert rest < 59.99


async def test_a_client_that_can_not_start_fails_all_who_wait_and_is_tried_again(
    client: type[Client], recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: Client) -> None:
        raise RequestFailed("no connection")

    with monkeypatch.context() as broken:
        broken.setattr(client, "start", fails)
        failures = await asyncio.gather(*(recommender.respond(REQUEST) for _ in range(3)), return_exceptions=True)
    assert [type(failure) for failure in failures] == [RequestFailed] * 3
    client.may_start.set()
    assert (await recommender.respond(REQUEST)).status is Status.OK
    assert len(client.made) == 2


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
