"""A worker that follows other workers' changelogs takes a partition over without reading it whole."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from tests.integration.histories import histories, send
from tests.integration.workers import kafka_worker, until
from xgr_stream.config import MIB, StreamConfig, TransactionConfig
from xgr_stream.history import HistoryStore
from xgr_stream.metrics import Metrics
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.records import Record
from xgr_stream.stream.standby import Standby
from xgr_stream.testing.broker import Broker

pytestmark = pytest.mark.skipif(
    not {"XGR_TEST_KAFKA_HOME", "XGR_TEST_BROKER"} & os.environ.keys(), reason="needs Apache Kafka"
)


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


class Follower:
    """A standby without a worker; what a worker would own is its to set."""

    def __init__(self, broker: Broker, config: StreamConfig, num_partitions: int, *, max_bytes: int = 8 * MIB) -> None:
        self.history, self.metrics, self.owned = HistoryStore(config.history), Metrics(), frozenset({0})
        self.standby = Standby(
            broker.connection,
            self.history,
            topic=config.topics.changelog,
            num_partitions=num_partitions,
            max_bytes=max_bytes,
            isolation_level="read_uncommitted",
            owned=lambda: self.owned,
            metrics=self.metrics,
        )

    async def __aenter__(self) -> Follower:
        self._running = asyncio.create_task(self.standby.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])

    def counts(self) -> dict[int, int]:
        """Users of each copy."""
        return {number: len(self.history.restoring(number).users) for number in self.standby.positions}


async def written(broker: Broker, config: StreamConfig) -> dict[int, int]:
    """Users of each partition, after three events of each."""
    async with kafka_worker(broker, config) as driver:
        await send(broker, config, [f"item-{i}" for i in range(3)])
        await until(lambda: own(driver) == 36)
        history = driver.runtime.setup.engine.history
        return {number: len(history.users(number)) for number in range(driver.runtime.num_partitions)}


async def test_copies_stay_within_their_memory(broker: Broker, config: StreamConfig) -> None:
    users = await written(broker, config)
    async with Follower(broker, config, len(users), max_bytes=500) as follower:  # less than two users
        await until(lambda: follower.standby._refused)
        await until(lambda: sum(follower.counts().values()) <= 1)
        assert 0 not in follower.standby.positions
        assert not follower.standby._refused & follower.standby.positions.keys()
        assert follower.metrics.standby_partitions._value.get() == len(follower.standby.positions)


async def test_a_copy_is_made_anew(broker: Broker, config: StreamConfig) -> None:
    """When the partition came and went, and when the changelog is not where it was."""
    users = await written(broker, config)
    others = {number: count for number, count in users.items() if number}
    async with Follower(broker, config, len(users)) as follower:
        await until(lambda: follower.counts() == others)
        follower.standby.drop(1)  # between two looks at what is owned
        assert 1 not in follower.counts()
        await until(lambda: follower.counts() == others)
        follower.standby._positions[2] = 1_000_000
        follower.owned = frozenset({0, 1})
        assert follower.standby.hand_over(1) is not None
        del others[1]
        await until(lambda: follower.counts() == others and follower.standby.positions[2] < 1_000_000)
        assert follower.standby.hand_over(1) is None
