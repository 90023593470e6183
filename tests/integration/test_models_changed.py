"""An operator changes the models of a worker: each change ends, whoever leaves or fails meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.integration.workers import kafka_worker, until
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.errors import ConfigError, TopologyError
from xgr_stream.history import HistoryStore
from xgr_stream.stream.catalog_feed import CatalogFeed
from xgr_stream.stream.control import ModelsPage
from xgr_stream.stream.health import Pages, served
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.testing import NullEngine
from xgr_stream.testing.broker import Broker, free_port
from xgr_stream.types import RecommendRequest


@pytest.fixture
async def page(broker: Broker, config: StreamConfig) -> AsyncIterator[tuple[str, KafkaDriver, HistoryStore]]:
    history = HistoryStore(config.history)
    async with kafka_worker(broker, config, NullEngine(history=history, version="a")) as driver:
        models, port = ModelsPage(lambda: driver.runtime), free_port()
        pages = Pages(lambda: driver.runtime, driver.runtime.setup.metrics)
        async with served(pages, "127.0.0.1", port, {"GET": models.get, "POST": models.post}):
            yield f"http://127.0.0.1:{port}/models", driver, history


async def test_an_operator_changes_models_over_the_web_port(page: tuple[str, KafkaDriver, HistoryStore]) -> None:
    url, driver, history = page
    await driver.runtime.models.load(NullEngine(history=history, version="b"))
    async with aiohttp.ClientSession() as session:

        async def post(message: object, **options: Any) -> tuple[int, Any]:
            options = options or {"json": message}
            async with session.post(url, **options) as response:
                return response.status, await response.json()

        async with session.get(url) as response:
            said = await response.json()
        assert [model["version"] for model in said["models"]] == ["a", "b"]
        status, said = await post({"action": "adjust", "role": "canary", "fraction": 0.25})
        assert (status, said["models"][1]["role"], said["models"][1]["fraction"]) == (200, "canary", 0.25)
        for wrong, says in (
            ({"action": "delete"}, "load, adjust, promote, drop"),
            ({"action": "promote", "when": "now"}, "nothing else"),
            ([], "must be a map"),
            ({"action": ["load"]}, "must be a map"),
            ({"action": "load"}, "model must be the path"),
            ({"action": "adjust", "fraction": "half"}, "fraction must be"),
            ({"action": "load", "model": "/nowhere", "cache_bytes": "much"}, "cache_bytes must be"),
        ):
            status, said = await post(wrong)
            assert (status, says in said["error"]) == (400, True), said
            assert said["models"][1]["fraction"] == 0.25
        status, said = await post(None, data=b"{", headers={"content-type": "application/json"})
        assert (status, "must be JSON" in said["error"]) == (400, True)
        status, said = await post(None, data=b"[" * 100_000, headers={"content-type": "application/json"})
        assert (status, "must be JSON" in said["error"]) == (400, True)
        assert (await post(None, data=json.dumps({"action": "drop"})))[0] == 415
        for host in ("rebound.example:9464", "10.0.0.1", "localhost.rebound.example", "[", ""):
            assert (await post(None, json={"action": "drop"}, headers={"host": host}))[0] in (400, 403)
        for host in ("localhost:9464", "127.0.0.1", "[::1]:9464"):
            status, said = await post(None, json={"action": "adjust", "fraction": 0.25}, headers={"host": host})
            assert (status, len(said["models"])) == (200, 2)
        status, said = await post({"action": "promote"})
        assert (status, [model["version"] for model in said["models"]]) == (200, ["b"])


@pytest.mark.parametrize("change", ["load", "promote", "drop"])
async def test_a_change_goes_on_when_its_caller_has_left(
    page: tuple[str, KafkaDriver, HistoryStore], change: str
) -> None:
    _, driver, history = page
    models, held, go_on = driver.runtime.models, threading.Event(), threading.Event()
    if change != "load":
        await models.load(NullEngine(history=history, version="b"), role="canary", fraction=1.0)
    blocked = driver.runtime._device.call(lambda: held.set() or go_on.wait(20))
    await asyncio.to_thread(held.wait, 20)
    changes: dict[str, Any] = {
        "load": lambda: models.load(NullEngine(history=history, version="b"), role="canary", fraction=1.0),
        "promote": models.promote,
        "drop": models.drop,
    }
    caller = asyncio.create_task(changes[change]())
    await asyncio.sleep(0.2)
    caller.cancel()
    await asyncio.wait({caller})
    assert caller.cancelled()
    with pytest.raises(ConfigError, match="one change of the models at a time"):
        await models.drop()
    go_on.set()
    assert await asyncio.wrap_future(blocked)
    left = {"load": ["a", "b"], "promote": ["b"], "drop": ["a"]}[change]
    await until(lambda: [model["version"] for model in models.status()] == left)
    answer = await asyncio.wrap_future(driver.runtime.submit(RecommendRequest("r", "user")))
    assert answer.model_version == left[-1]
    await until(lambda: models._changing is None)
    if change == "load":
        await models.drop()
    await models.load(NullEngine(history=history, version="c"))
    assert [model["version"] for model in models.status()] == ["a" if change == "load" else left[-1], "c"]


async def test_an_engine_that_fails_when_it_is_let_go_is_let_go(page: tuple[str, KafkaDriver, HistoryStore]) -> None:
    _, driver, history = page

    class Clinging(NullEngine):
        def close(self) -> None:
            raise RuntimeError("what was under way failed")

    await driver.runtime.models.load(Clinging(history=history, version="b"))
    await driver.runtime.models.drop()
    assert [model["version"] for model in driver.runtime.models.status()] == ["a"]


async def test_a_challenger_whose_catalog_is_lost_is_dropped_once_the_change_under_way_is_done(
    page: tuple[str, KafkaDriver, HistoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, driver, history = page
    models, held, go_on, lost = driver.runtime.models, threading.Event(), threading.Event(), asyncio.Event()

    async def run(_: CatalogFeed) -> None:
        await lost.wait()
        raise TopologyError("recreated")

    monkeypatch.setattr(CatalogFeed, "run", run)
    await models.load(NullEngine(history=history, version="b"), role="canary", fraction=1.0)
    blocked = driver.runtime._device.call(lambda: held.set() or go_on.wait(20))
    await asyncio.to_thread(held.wait, 20)
    adjusting = asyncio.create_task(models.adjust(fraction=0.5))
    await asyncio.sleep(0.1)
    lost.set()
    await asyncio.sleep(0.1)
    go_on.set()
    assert await asyncio.wrap_future(blocked)
    await adjusting
    await until(lambda: [model["version"] for model in models.status()] == ["a"])
    assert models.error == "b was dropped, its catalog can't be kept up to date: recreated"
    assert driver.runtime.failure is None


async def test_a_request_that_comes_again_keeps_the_answer_of_the_version_that_gave_it(
    page: tuple[str, KafkaDriver, HistoryStore], broker: Broker, config: StreamConfig
) -> None:
    _, driver, history = page
    await driver.runtime.models.load(NullEngine(history=history, version="b"), role="canary", fraction=1.0)
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        request = RecommendRequest("again", "user")
        first = await client.respond(request, timeout=20)
        await driver.runtime.models.drop()
        second = await client.respond(request, timeout=20)
        assert (first.model_version, second.model_version) == ("b", "b")
        assert (await client.recommend("user", timeout=20)).model_version == "a"
