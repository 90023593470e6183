"""A catalog that changes while a worker serves: no answer holds what was gone in the version that it names."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

import pytest
import torch
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from click.testing import CliRunner

from tests.integration.workers import kafka_worker, make_topics, until
from tests.property.live import Place, content
from xgr_stream import Catalog, Engine
from xgr_stream.cli.main import main
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig
from xgr_stream.engine.catalog_merge import CatalogMerge
from xgr_stream.errors import XgrError
from xgr_stream.history import HistoryStore
from xgr_stream.stream import catalog_feed, codec, protocol
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.testing import tiny_catalog, tiny_items, tiny_model
from xgr_stream.testing.broker import Broker
from xgr_stream.types import CatalogUpdate, RecommendResponse, Status

CODES = (8, 8, 8)
ITEMS = 60
TOMBSTONES = 75
P99_S = 1.0


def new_engine(config: StreamConfig) -> Engine:
    return Engine.load(tiny_model(CODES), tiny_catalog(CODES, items=ITEMS), history=HistoryStore(config.history))


def base() -> dict[str, Place]:
    items = tiny_items(CODES, items=ITEMS)
    columns = zip(items["item_id"], items["sid"], items["tags"], strict=True)
    return {item_id: Place(tuple(sid), tuple(sorted(tags)), True) for item_id, sid, tags in columns}


def quantile(ordered: list[float], q: float) -> float:
    return ordered[math.ceil(q * len(ordered)) - 1]


class Updates:
    """Writes updates, and keeps them in the order of their offsets."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self._topic = topic
        self.log: list[CatalogUpdate] = []

    async def __aenter__(self) -> Self:
        self._producer: AIOKafkaProducer = await self._broker.connection.start_producer()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def write(self, update: CatalogUpdate, value: bytes | None = None) -> None:
        message = protocol.update_message(update)
        data = value if value is not None or message is None else codec.encode(message, "msgpack")
        written = await self._producer.send_and_wait(self._topic, data, update.item_id.encode(), partition=0)
        assert written.offset == len(self.log)
        self.log.append(update)


@pytest.fixture
async def updates(broker: Broker, config: StreamConfig) -> AsyncIterator[Updates]:
    async with Updates(broker, config.topics.catalog) as writer:
        yield writer


def check(responses: Sequence[RecommendResponse], log: list[CatalogUpdate]) -> None:
    """No item that is not to be had in the version that the answer names; all of them, for k is all."""
    by_version: dict[str, dict[str, Place]] = {}
    for response in responses:
        version = response.catalog_version
        if version not in by_version:
            by_version[version] = content(base(), log, version)
        _check(response, by_version[version])


def _check(response: RecommendResponse, places: dict[str, Place]) -> None:
    legal = {item_id for item_id, place in places.items() if place.available}
    assert {item.item_id for item in response.items} == legal, response.catalog_version
    assert all(item.sid == places[item.item_id].sid for item in response.items)


@pytest.mark.timeout(240)
async def test_tombstones_and_launches_under_load(broker: Broker, config: StreamConfig, updates: Updates) -> None:
    """Three askers at a time; the delay of a tombstone is from its produce to the last answer that holds the item."""
    engine = new_engine(config)
    last_seen: dict[str, float] = {}
    answers: list[RecommendResponse] = []
    took: list[float] = []
    seed = random.Random(0)
    done = asyncio.Event()
    async with (
        kafka_worker(broker, config, engine) as driver,
        RecommendClient(broker.connection, topics=config.topics) as client,
    ):

        async def ask(user: str) -> None:
            await client.send_event(user, f"item-{seed.randrange(ITEMS)}")
            while not done.is_set():
                asked = time.monotonic()
                response = await client.recommend(user, k=128, beam_width=128, timeout=20)
                now = time.monotonic()
                took.append(now - asked)
                answers.append(response)
                last_seen.update((item.item_id, now) for item in response.items)
                await asyncio.sleep(0.01)  # the broker and the worker are on these cores, too

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(ask(f"user-{number}"))
            await until(lambda: len(answers) > 3)
            delays = []
            for number in range(TOMBSTONES):
                item_id = f"item-{number % ITEMS}" if number < ITEMS else f"new-{number}"
                if number >= ITEMS:
                    await updates.write(CatalogUpdate(item_id, tuple(seed.randrange(8) for _ in CODES)))
                    await until(lambda item_id=item_id: item_id in last_seen)
                sent = time.monotonic()
                await updates.write(CatalogUpdate(item_id, None))
                await asyncio.sleep(0.05)
                delays.append((item_id, sent))
                if number < ITEMS:
                    await updates.write(CatalogUpdate("item-0", base()["item-0"].sid, base()["item-0"].tags))
            await until(lambda: driver.runtime.readiness()["catalog"]["position"] == len(updates.log))
            await asyncio.sleep(0.3)
            done.set()
        late = sorted(max(0.0, last_seen.get(item_id, 0.0) - sent) for item_id, sent in delays if item_id != "item-0")
        p50, p99 = (quantile(late, q) for q in (0.5, 0.99))
        own = quantile(sorted(took), 0.99)
        print(
            f"from a tombstone to the last answer with its item: P50 {p50:.3f}, P99 {p99:.3f} s; an answer {own:.3f} s"
        )
        assert p99 < P99_S + own  # on a machine that is busy otherwise an answer alone may take longer than that
        check(answers, updates.log)
        assert len({response.catalog_version for response in answers}) > 20
        assert engine.stats().invalid_items == 0


async def test_a_restarted_worker_serves_the_same_version(
    broker: Broker, config: StreamConfig, updates: Updates
) -> None:
    """From the first answer on; what can't be read counts as a tombstone, on both."""
    places = base()
    async with kafka_worker(broker, config, new_engine(config)) as driver:
        for number in range(30):
            await updates.write(
                CatalogUpdate(f"item-{number}", places[f"item-{number}"].sid, ("red",), number % 2 == 0)
            )
        await updates.write(CatalogUpdate("launched", (1, 2, 3), ("blue",)))
        await updates.write(CatalogUpdate("item-59", None))
        await updates.write(CatalogUpdate("item-58", None), b"\xc1 no update")
        wrong = {"v": 1, "sid": [1, 2]}
        await updates.write(CatalogUpdate("item-57", None), codec.encode(wrong, "json"))
        await act(broker, config)
        before = await settled(broker, config, driver, len(updates.log))
        metrics = driver.runtime.setup.metrics.registry
        assert metrics.get_sample_value("xgr_catalog_updates_refused_total", {"reason": "malformed"}) == 1
        assert metrics.get_sample_value("xgr_catalog_updates_refused_total", {"reason": "invalid_update"}) == 1
    async with kafka_worker(broker, config, new_engine(config)) as driver:
        after = await settled(broker, config, driver, len(updates.log))
    assert before.catalog_version == after.catalog_version
    assert before.catalog_version.endswith(f"+{len(updates.log)}")
    assert [(i.item_id, i.sid) for i in before.items] == [(i.item_id, i.sid) for i in after.items]
    check([before], updates.log)


async def act(broker: Broker, config: StreamConfig) -> None:
    """The user who is asked for has a history."""
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        position = await client.send_event("user", "item-31")
        await client.recommend("user", timeout=20, after=position)


async def settled(broker: Broker, config: StreamConfig, driver: KafkaDriver, position: int) -> RecommendResponse:
    """An answer from the catalog at this position."""
    await until(lambda: driver.runtime.readiness()["catalog"]["position"] == position)
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        while True:
            response = await client.recommend("user", k=128, beam_width=128, timeout=20)
            assert response.status is Status.OK
            if "~" not in response.catalog_version:
                return response


async def test_a_worker_without_memory_for_a_merge_serves_on_and_merges_later(
    broker: Broker, config: StreamConfig, updates: Updates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that starts then. What the merge held is let go of before the next one."""
    lacking, tried, run = asyncio.Event(), list[weakref.ref[CatalogMerge]](), CatalogMerge.run

    def short(merge: CatalogMerge) -> None:
        if lacking.is_set():
            tried.append(weakref.ref(merge))
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(merge)

    monkeypatch.setattr(CatalogMerge, "run", short)
    monkeypatch.setattr(catalog_feed, "RETRY_S", 0.02)
    lacking.set()
    async with kafka_worker(broker, config, new_engine(config)) as driver:
        await updates.write(CatalogUpdate("first", (1, 1, 1)))
        await until(lambda: len(tried) > 2)
    tried.clear()  # one was perhaps under way when the worker stopped: nothing lets go of it before the collector does
    async with kafka_worker(broker, config, new_engine(config)) as driver:
        readiness, metrics = driver.runtime.readiness, driver.runtime.setup.metrics.registry
        await updates.write(CatalogUpdate("item-1", None))
        await updates.write(CatalogUpdate("second", (1, 1, 2)))
        await updates.write(CatalogUpdate("item-0", (1, 1, 3)))
        await until(lambda: readiness()["catalog"]["position"] == 4)
        await act(broker, config)
        async with RecommendClient(broker.connection, topics=config.topics) as client:
            response = await client.recommend("user", k=128, beam_width=128, timeout=20)
        check([response], updates.log)
        served = {*base(), "first", "second"} - {"item-1"}
        assert {item.item_id for item in response.items} == served
        for catalog in (readiness()["catalog"], readiness()["models"][0]["catalog"]):
            assert catalog["merge_error"] == "no memory for a merge: CUDA out of memory"
        assert metrics.get_sample_value("xgr_catalog_merges_failed_total") > 0
        assert [ref for ref in tried[:-1] if ref() is not None] == []
        lacking.clear()
        after = await settled(broker, config, driver, 4)
        assert {item.item_id for item in after.items} == served
        await until(lambda: readiness()["catalog"]["merge_error"] is None)
        assert readiness()["failure"] is None


async def test_a_topic_of_several_partitions_is_refused(broker: Broker, config: StreamConfig) -> None:
    await make_topics(broker, NewTopic(config.topics.catalog, 2, 1))
    with pytest.raises(XgrError, match="must have one partition, and it has 2"):
        async with kafka_worker(broker, config):
            pytest.fail("it serves")


def command(broker: Broker, config: StreamConfig, *arguments: object) -> str:
    brokers = ["--broker", broker.bootstrap, "--topic", f"catalog={config.topics.catalog}"]
    result = CliRunner().invoke(main, ["catalog", *map(str, arguments), *brokers])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output.splitlines()[-1]


async def test_the_command_changes_what_is_served_and_takes_it_back(
    broker: Broker, config: StreamConfig, updates: Updates, tmp_path: Path
) -> None:
    file, table = tmp_path / "catalog.parquet", tmp_path / "changes.jsonl"
    tiny_catalog(CODES, items=ITEMS).save(file)
    async with kafka_worker(broker, config, new_engine(config)) as driver:
        await updates.write(CatalogUpdate("item-1", None))
        await updates.write(CatalogUpdate("item-5", (1, 2, 99)))  # a code that there is not
        await act(broker, config)
        before = await settled(broker, config, driver, 2)
        table.write_text(
            '{"item_id": "item-2", "available": false}\n{"item_id": "launched", "sid": [1, 1, 1], "tags": ["red"]}\n'
            '{"item_id": "item-3", "gone": true}\n{"item_id": "item-4", "available": true}\n'
        )
        options = (broker, config, "apply", table, "--catalog", file)
        assert await asyncio.to_thread(command, *options) == f"3 updates written to {config.topics.catalog}"
        after = await settled(broker, config, driver, 5)
        shown = {item.item_id for item in after.items}
        assert "launched" in shown
        assert not shown & {"item-1", "item-2", "item-3", "item-5"}
        found = await asyncio.to_thread(command, broker, config, "diff", f"{file}+2", f"{file}+end")
        assert found == "new 1, gone 0, moved 0, retagged 0, back 0, away 2"
        made = await asyncio.to_thread(
            command, broker, config, "build", f"{file}+end", "--out", tmp_path / "now.parquet"
        )
        assert made.startswith(f"{ITEMS + 1} items")
        now = Catalog.load(tmp_path / "now.parquet")
        assert now.codes == CODES
        assert {item_id for item_id in [*base(), "launched"] if now.available[now.row(item_id)]} == shown
        going_back = (broker, config, "rollback", f"{file}+2", "--force")
        assert await asyncio.to_thread(command, *going_back) == f"3 updates written to {config.topics.catalog}"
        again = await settled(broker, config, driver, 8)
        assert (before.items, before.event_count) == (again.items, again.event_count)
        assert again.catalog_version.endswith("+8")


@pytest.mark.skipif("XGR_TEST_KAFKA_HOME" not in os.environ, reason="needs Apache Kafka: XGR_TEST_KAFKA_HOME")
async def test_what_a_transaction_aborted_never_counts(broker: Broker, config: StreamConfig) -> None:
    value = codec.encode({"v": 1, "sid": [1, 2, 3]}, "msgpack")
    topic = config.topics.catalog
    async with kafka_worker(broker, config, new_engine(config)) as driver:
        producer = await broker.connection.start_transactional_producer(f"shop-{topic}", 10_000)
        try:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, value, b"aborted", partition=0)
            await producer.abort_transaction()
            async with producer.transaction():
                written = await producer.send_and_wait(topic, value, b"committed", partition=0)
            await until(lambda: driver.runtime.readiness()["catalog"]["position"] == written.offset + 1)
            await nothing_behind(driver, written.offset + 2)
            await producer.begin_transaction()
            await producer.send_and_wait(topic, value, b"aborted", partition=0)
            await producer.abort_transaction()
            await nothing_behind(driver, written.offset + 4)
        finally:
            await producer.stop()
        engine = driver.runtime.setup.engine
        await until(lambda: engine.knows_item("committed"))
        assert not engine.knows_item("aborted")
    again = new_engine(config)
    async with kafka_worker(broker, config, again) as driver:
        assert again.knows_item("committed")
        assert not again.knows_item("aborted")
        await nothing_behind(driver, written.offset + 4)


async def nothing_behind(driver: KafkaDriver, end: int) -> None:
    """The worker knows of the topic up to this end, a transaction's marker, and has read it all."""
    feed = driver.runtime.models._primary.feed
    registry = driver.runtime.setup.metrics.registry
    await until(lambda: feed._consumer is not None and feed._consumer.highwater(feed._partition) == end)
    await until(lambda: driver.runtime.readiness()["catalog"]["behind"] == 0)
    await until(lambda: registry.get_sample_value("xgr_catalog_behind") == 0)
