"""A worker that follows other workers' changelogs takes a partition over without reading it whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.integration.workers import kafka_worker, until
from xgr_stream.client import RecommendClient
from xgr_stream.config import MIB, StreamConfig, TransactionConfig
from xgr_stream.history import HistoryStore
from xgr_stream.metrics import Metrics
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.records import Record
from xgr_stream.stream.standby import Standby
from xgr_stream.testing.broker import Broker

pytestmark = pytest.mark.skipif(
    not {"XGR_TEST_KAFKA_HOME", "XGR_TEST_BROKER"} & os.environ.keys(), reason="needs Apache Kafka"
)

USERS = [f"user-{i}" for i in range(12)]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """The changelog records that new owners' restores were fed, but for fences and anchors."""
    records: list[Record] = []
    restore = Processor.restore

    def noted(self: Processor, partition: int, batch: Iterable[Record]) -> None:
        listed = list(batch)
        records.extend(record for record in listed if record.key and record.key[1] != 2)
        restore(self, partition, listed)

    monkeypatch.setattr(Processor, "restore", noted)
    return records


def histories(*drivers: KafkaDriver) -> dict[str, list[str]]:
    found = {}
    for driver in drivers:
        history = driver.runtime.setup.engine.history
        views = {user: history.view(user) for user in USERS}
        found |= {user: [history.item_names[i] for i in view.items.tolist()] for user, view in views.items() if view}
    return found


async def send(broker: Broker, config: StreamConfig, items: Iterable[str]) -> None:
    async with RecommendClient(broker.connection, topics=config.topics) as client:
        for item in items:
            await asyncio.gather(*(client.send_event(user, item) for user in USERS))


def copied(driver: KafkaDriver) -> int:
    """Events in copies."""
    history: HistoryStore = driver.runtime.setup.engine.history
    standby = driver.runtime._standby
    assert standby is not None
    restoring = (history.restoring(number).users.values() for number in standby.positions)
    return sum(user.end - user.start for users in restoring for user in users)  # type: ignore[union-attr]


def own(driver: KafkaDriver) -> int:
    return driver.runtime.setup.engine.history.num_events


@pytest.fixture(params=[False, True], ids=["at least once", "transactions"])
def followed(request: pytest.FixtureRequest, config: StreamConfig) -> StreamConfig:
    return replace(config, standby_bytes=8 * MIB, transactions=TransactionConfig() if request.param else None)


async def test_what_comes_over_is_not_read_whole(broker: Broker, followed: StreamConfig, fed: list[Record]) -> None:
    config = followed
    async with kafka_worker(broker, config) as staying:
        await send(broker, config, [f"item-{i}" for i in range(40)])
        await until(lambda: own(staying) == 480)
        async with kafka_worker(broker, config) as leaving:
            await until(lambda: own(staying) + own(leaving) == 480 and own(leaving) and copied(staying) == own(leaving))
            await send(broker, config, ["item-more"])
            await until(lambda: own(staying) + own(leaving) == 492 and copied(staying) == own(leaving))
            before = histories(staying, leaving)
            moved = len(leaving.runtime.assigned)
            assert 0 < moved < staying.runtime.num_partitions
            fed.clear()
        await until(lambda: staying.runtime.readiness()["ready"] and own(staying) == 492)
        assert fed == []
        assert histories(staying) == before
        await send(broker, config, ["item-new"])
        await until(lambda: own(staying) == 504)
        staying.runtime.setup.engine.history.check_integrity()
        assert {len(items) for items in histories(staying).values()} == {42}


async def test_copies_stay_within_their_memory(broker: Broker, config: StreamConfig) -> None:
    async with kafka_worker(broker, config) as driver:
        await send(broker, config, [f"item-{i}" for i in range(3)])
        await until(lambda: own(driver) == 36)
    history, metrics, owned = HistoryStore(config.history), Metrics(), frozenset({0})
    standby = Standby(
        broker.connection,
        history,
        topic=config.topics.changelog,
        num_partitions=driver.runtime.num_partitions,
        max_bytes=500,  # less than two users
        isolation="read_uncommitted",
        owned=lambda: owned,
        metrics=metrics,
    )
    running = asyncio.create_task(standby.run())
    try:
        await until(lambda: standby._refused)
        await until(lambda: sum(len(history.restoring(n).users) for n in standby.positions) <= 1)
        assert 0 not in standby.positions
        assert metrics.standby_partitions._value.get() == len(standby.positions)
        assert not standby._refused & standby.positions.keys()
    finally:
        running.cancel()
        await asyncio.wait([running])
