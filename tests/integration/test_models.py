"""Two versions of the model in a worker that goes on serving: loaded, compared, promoted, dropped, and none lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.workers import kafka_worker, until
from tests.property.oracle import assert_same
from xgr_stream import Engine
from xgr_stream.client import RecommendClient
from xgr_stream.config import MIB, ChallengerConfig, StreamConfig
from xgr_stream.errors import ConfigError, ShuttingDown
from xgr_stream.history import HistoryStore
from xgr_stream.scheduler.versions import Share, Versions
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.recommender import Recommender
from xgr_stream.stream.setup import ServedEngine
from xgr_stream.testing import NullEngine, save_tiny_model, tiny_catalog
from xgr_stream.testing.broker import Broker
from xgr_stream.types import CatalogUpdate, RecommendRequest, RecommendResponse, Status

USERS = [f"user-{n}" for n in range(8)]


class Shop:
    """Checkpoints of two versions and their catalog."""

    def __init__(self, path: Path, config: StreamConfig) -> None:
        self.models = [str(save_tiny_model(path / name, seed=seed)) for seed, name in enumerate("ab")]
        self.catalog = str(path / "catalog.parquet")
        self.config = config
        tiny_catalog().save(self.catalog)
        self.versions = [self.engine(which).version for which in (0, 1)]

    def engine(self, which: int, history: HistoryStore | None = None) -> Engine:
        return Engine.load(self.models[which], self.catalog, history=history or HistoryStore(self.config.history))


@pytest.fixture
def shop(tmp_path: Path, config: StreamConfig) -> Shop:
    return Shop(tmp_path, config)


def primary_of(driver: KafkaDriver) -> Any:
    engine: Any = driver.runtime.setup.engine
    return engine.primary


class Traffic:
    """Events and requests of some users, until told to end."""

    def __init__(self, client: RecommendClient) -> None:
        self._client = client
        self.answers: list[RecommendResponse] = []
        self.events: dict[str, list[str]] = {user: [] for user in USERS}
        self._done = asyncio.Event()
        self.flows = asyncio.Event()
        self.flows.set()

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._act(user)) for user in USERS]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done.set()
        await asyncio.gather(*self._tasks)

    async def _act(self, user: str) -> None:
        number = 0
        while not self._done.is_set():
            await self.flows.wait()
            item = f"item-{(number * 7 + len(user)) % 60}"
            self.events[user].append(item)
            position = await self._client.send_event(user, item)
            self.answers.append(await self._client.recommend(user, timeout=60, after=position))
            number += 1

    async def more(self, count: int = 2 * len(USERS)) -> None:
        """Until so many more were answered."""
        enough = len(self.answers) + count
        await until(lambda: len(self.answers) >= enough)

    def check(self, shop: Shop) -> None:
        """Each answer is its version's own, from the events that it names."""
        engines = dict(zip(shop.versions, (shop.engine(0), shop.engine(1)), strict=True))
        for user, events in self.events.items():
            answers = sorted((a for a in self.answers if a.user_id == user), key=lambda answer: answer.event_count)
            assert [answer.event_count for answer in answers] == list(range(1, len(events) + 1))
            for item, answer in zip(events, answers, strict=True):
                for engine in engines.values():
                    engine.append(user, [item])
                own = engines[answer.model_version].recommend(user, k=60, beam_width=64)
                assert_same(answer.items, own, 10)


async def test_versions_are_swapped_while_requests_flow(broker: Broker, config: StreamConfig, shop: Shop) -> None:
    """Shadow, canary, a larger share, promotion; a checkpoint that is none; the way back. Not one request fails."""
    a, b = shop.versions
    served_engines: Versions[ServedEngine] = Versions(shop.engine(0))
    first = weakref.ref(served_engines.primary)
    async with (
        kafka_worker(broker, config, served_engines) as driver,
        RecommendClient(broker.connection, topics=config.topics) as client,
        Traffic(client) as traffic,
    ):
        models, metrics = driver.runtime.models, driver.runtime.setup.metrics.registry
        await traffic.more()
        with pytest.raises(ConfigError, match=r"no-such-model must be a Hugging Face directory"):
            await models.load("no-such-model")
        assert "no-such-model" in (driver.runtime.readiness()["model_error"] or "")
        await traffic.more()
        assert await models.load(shop.models[1], role="shadow", fraction=1.0) == b
        await traffic.more()
        assert {answer.model_version for answer in traffic.answers} == {a}
        compared = {"version": b, "outcome": "compared"}
        traffic.flows.clear()  # it may need all of the device, and then a shadow has none of it
        await until(lambda: metrics.get_sample_value("xgr_shadow_requests_total", compared))
        traffic.flows.set()
        with pytest.raises(ConfigError, match="promote or drop it first"):
            await models.load(shop.models[1])
        await models.adjust(role="canary", fraction=0.5)
        before = len(traffic.answers)
        await traffic.more(4 * len(USERS))
        share = Share(b, 0.5)
        settled = traffic.answers[before + len(USERS) :]  # those under way were begun before
        assert all((answer.model_version == b) == share.has(answer.user_id) for answer in settled)
        assert {answer.model_version for answer in settled} == {a, b}
        assert [(m["version"], m["role"], m["fraction"]) for m in driver.runtime.readiness()["models"]] == [
            (a, "primary", 0.5),
            (b, "canary", 0.5),
        ]
        await models.promote()
        await until(lambda: first() is None)  # without a collection: no cycle keeps its memory
        before = len(traffic.answers)
        await traffic.more(3 * len(USERS))
        assert {answer.model_version for answer in traffic.answers[before + len(USERS) :]} == {b}
        await models.load(shop.models[0], role="canary", fraction=1.0)
        await traffic.more()
        await models.drop()
        await traffic.more()
        assert traffic.answers[-1].model_version == b
        told = {
            sample.labels["version"]
            for metric in metrics.collect()
            for sample in metric.samples
            if "version" in sample.labels
        }
        assert told == {b}
        assert driver.runtime.readiness()["ready"]
    assert {answer.status for answer in traffic.answers} == {Status.OK}
    await asyncio.to_thread(traffic.check, shop)


async def test_updates_of_the_catalog_reach_both(broker: Broker, config: StreamConfig, shop: Shop) -> None:
    """Those from before the challenger was loaded, too; and events before it, which are in the history."""
    producer = await broker.connection.start_producer()
    try:
        async with kafka_worker(broker, config, shop.engine(0)) as driver:

            async def write(update: CatalogUpdate) -> int:
                message = protocol.update_message(update)
                value = None if message is None else codec.encode(message, "msgpack")
                key = update.item_id.encode()
                return (await producer.send_and_wait(config.topics.catalog, value, key, partition=0)).offset + 1

            async def items_of(position: int) -> dict[str, set[str]]:
                status = driver.runtime.models.status
                await until(lambda: [model["catalog"]["position"] for model in status()] == [position] * 2)
                found = {}
                for user in USERS:
                    request = RecommendRequest(f"{user}-{position}", user, k=128, beam_width=128)
                    answer = await asyncio.wrap_future(driver.runtime.submit(request))
                    found[answer.model_version] = {item.item_id for item in answer.items}
                return found

            async with RecommendClient(broker.connection, topics=config.topics) as client:
                for user in USERS:
                    await client.recommend(user, timeout=20, after=await client.send_event(user, "item-5"))
            await write(CatalogUpdate("item-1", None))
            position = await write(CatalogUpdate("launched", (1, 2, 3)))
            await driver.runtime.models.load(shop.models[1], role="canary", fraction=0.5)
            both = await items_of(position)
            assert set(both) == set(shop.versions)
            assert all("launched" in items and "item-1" not in items for items in both.values())
            position = await write(CatalogUpdate("item-2", None))
            assert all("item-2" not in items for items in (await items_of(position)).values())
    finally:
        await producer.stop()


async def test_a_worker_begins_with_a_challenger_or_without(
    broker: Broker, config: StreamConfig, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.integration import workers

    def with_challenger(model: str, **fields: Any) -> Any:
        challenger = ChallengerConfig(model, "canary", 1.0, **fields)
        return lambda *parts: replace(setup(*parts), challenger=challenger)

    setup: Any = workers.Setup
    monkeypatch.setattr(workers, "Setup", with_challenger(shop.models[1], cache_bytes=2 * MIB))
    async with kafka_worker(broker, config, shop.engine(0)) as driver:
        answer = await asyncio.wrap_future(driver.runtime.submit(RecommendRequest("r", "user")))
        assert answer.model_version == shop.versions[1]
        assert driver.runtime.models.status()[1]["role"] == "canary"
    monkeypatch.setattr(workers, "Setup", with_challenger(shop.models[1], cache_bytes=1))
    async with kafka_worker(broker, config, shop.engine(0)) as driver:
        answer = await asyncio.wrap_future(driver.runtime.submit(RecommendRequest("r", "user")))
        assert answer.model_version == shop.versions[0]
        assert "cache.budget_bytes must hold one window" in driver.runtime.readiness()["model_error"]


async def test_what_does_not_fit_is_refused(broker: Broker, config: StreamConfig, shop: Shop, tmp_path: Path) -> None:
    async with kafka_worker(broker, config, shop.engine(0)) as driver:
        models = driver.runtime.models
        recommender = Recommender(config, driver.runtime.setup.metrics)
        recommender.bind(driver.runtime)
        assert recommender.models is models
        with pytest.raises(ConfigError, match="no challenger: load one first"):
            await models.promote()
        with pytest.raises(ConfigError, match="must be of another version"):
            await models.load(shop.models[0])
        with pytest.raises(ConfigError, match="fraction must be a number from 0 to 1, not 5"):
            await models.load(shop.models[1], fraction=5)
        with pytest.raises(ConfigError, match="must read the worker's own history"):
            await models.load(NullEngine(version="b"))
        foreign = str(save_tiny_model(tmp_path / "foreign", (4, 4)))
        tiny_catalog((4, 4), items=10).save(tmp_path / "foreign.parquet")
        with pytest.raises(ConfigError, match="catalog_topic must be given"):
            await models.load(foreign, catalog=tmp_path / "foreign.parquet")
        topic = f"{config.topics.catalog}-foreign"
        version = await models.load(foreign, catalog=tmp_path / "foreign.parquet", catalog_topic=topic)
        assert models.status()[1]["catalog"]["topic"] == topic
        one, other = await asyncio.gather(models.promote(), models.promote(), return_exceptions=True)
        assert one is None
        assert "one change of the models at a time" in str(other)
        answer = await asyncio.wrap_future(driver.runtime.submit(RecommendRequest("r", "user")))
        assert answer.model_version == version
        assert len(answer.items[0].sid) == 2 if answer.items else True


async def test_a_challenger_whose_device_has_no_memory_leaves_the_primary(
    broker: Broker, config: StreamConfig, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kafka_worker(broker, config, shop.engine(0)) as driver:

        def full(*_: object, **__: object) -> Engine:
            raise MemoryError

        monkeypatch.setattr(Engine, "load", full)
        with pytest.raises(ConfigError, match="can't be loaded: MemoryError"):
            await driver.runtime.models.load(shop.models[1], catalog=shop.catalog)
        answer = await asyncio.wrap_future(driver.runtime.submit(RecommendRequest("r", "user")))
        assert answer.model_version == shop.versions[0]
        metrics = driver.runtime.setup.metrics.registry
        assert metrics.get_sample_value("xgr_model_loads_failed_total") == 1


async def test_a_challenger_that_can_t_be_loaded_leaves_no_memory_behind(
    broker: Broker, config: StreamConfig, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a model is gigabytes; with the worker's thresholds a collection may be minutes away."""
    halves: list[weakref.ref[NullEngine]] = []

    def load(*_: object, **__: object) -> Engine:
        half = NullEngine()
        halves.append(weakref.ref(half))
        raise ConfigError("the disk is away")

    async with kafka_worker(broker, config, shop.engine(0)) as driver:
        monkeypatch.setattr(Engine, "load", load)
        gc.disable()
        try:
            try:
                await driver.runtime.models.load(shop.models[1])
            except ConfigError:
                pass
            else:
                pytest.fail("it was loaded")
            await until(lambda: halves[0]() is None, 5)
        finally:
            gc.enable()


async def test_a_worker_that_is_told_to_stop_does_not_wait_for_a_model(
    broker: Broker, config: StreamConfig, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def load(*_: object, **__: object) -> Engine:
        threads.append(threading.current_thread())
        loading.set()
        go_on.wait(60)
        raise MemoryError

    async with kafka_worker(broker, config, shop.engine(0)) as driver:
        monkeypatch.setattr(Engine, "load", load)
        caller = asyncio.create_task(driver.runtime.models.load(shop.models[1]))
        await until(loading.is_set)
        answer = await asyncio.wrap_future(driver.runtime.submit(RecommendRequest("r", "user")))
        assert answer.model_version == shop.versions[0]
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(caller, 10)
    assert threads[0].daemon  # the process's end waits for any other
    go_on.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
