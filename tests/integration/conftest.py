"""Topics of each test's own, and one worker for those that need no life of it for themselves."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.raw import Raw
from tests.integration.workers import kafka_worker
from xgr_stream import Engine
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig, TopicNames
from xgr_stream.history import HistoryStore
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.records import Record
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.testing.broker import Broker

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.timeout(240))  # for one that hangs: no test says how fast anything is


def own_topics() -> TopicNames:
    """Names that nobody else uses."""
    own = uuid.uuid4().hex[:8]
    roles = ("events", "requests", "responses", "dead", "changelog", "catalog")
    return TopicNames(*(f"{role}-{own}" for role in roles))


@pytest.fixture
def topics() -> TopicNames:
    return own_topics()


@pytest.fixture
def config(topics: TopicNames) -> StreamConfig:
    return StreamConfig(topics=topics, shutdown_timeout_s=5.0)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """The changelog records that restores of partitions just assigned are fed, but for fences and anchors."""
    records: list[Record] = []
    restore = Processor.restore

    def noted(self: Processor, partition: int, batch: Iterable[Record]) -> None:
        listed = list(batch)
        records.extend(record for record in listed if record.key and record.key[1] != 2)
        restore(self, partition, listed)

    monkeypatch.setattr(Processor, "restore", noted)
    return records


# One worker for all the tests that need no life of it for themselves, each with users of its own.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(broker: Broker) -> AsyncIterator[KafkaDriver]:
    config = StreamConfig(topics=own_topics(), default_timeout_ms=20_000)
    engine = Engine.load(tiny_model(), tiny_catalog(), history=HistoryStore(config.history))
    async with kafka_worker(broker, config, engine) as driver:
        yield driver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def raw(broker: Broker, worker: KafkaDriver) -> AsyncIterator[Raw]:
    async with Raw(broker, worker.runtime.topics) as raw:
        yield raw


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(broker: Broker, worker: KafkaDriver) -> AsyncIterator[RecommendClient]:
    async with RecommendClient(broker.connection, topics=worker.runtime.topics) as client:
        yield client
