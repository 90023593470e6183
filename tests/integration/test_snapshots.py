"""A worker restarts from its snapshots, and from the changelog whenever they are not to be trusted."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.histories import USERS, histories, send
from tests.integration.workers import kafka_worker, until
from xgr_stream.config import SnapshotConfig, StreamConfig
from xgr_stream.history import HistoryStore
from xgr_stream.history.snapshot import SnapshotWriter, Source
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.records import Record
from xgr_stream.testing import NullEngine
from xgr_stream.testing.broker import Broker

# On the embedded broker the same group, taken up again at once, ends in an assertion of aiokafka's coordinator.
pytestmark = pytest.mark.skipif(
    not {"XGR_TEST_KAFKA_HOME", "XGR_TEST_BROKER"} & os.environ.keys(), reason="needs Apache Kafka"
)


@pytest.fixture
def config(config: StreamConfig, tmp_path: Path) -> StreamConfig:
    return replace(config, snapshots=SnapshotConfig(str(tmp_path / "snapshots"), interval_s=3_600))


async def serve(broker: Broker, config: StreamConfig, num_events: int) -> dict[str, list[str]]:
    """A worker's life until it has that many events; what it then knows."""
    async with kafka_worker(broker, config) as driver:
        history = driver.runtime.setup.engine.history
        await until(lambda: history.num_events >= num_events)
        return histories(driver)


def ignored(driver: KafkaDriver, reason: str) -> float:
    value = driver.runtime.setup.metrics.registry.get_sample_value("xgr_snapshots_ignored_total", {"reason": reason})
    return value or 0.0


async def test_a_restart_reads_only_what_came_after(broker: Broker, config: StreamConfig, fed: list[Record]) -> None:
    async with kafka_worker(broker, config) as driver:
        await send(broker, config, [f"item-{i}" for i in range(5)])
        await until(lambda: driver.runtime.setup.engine.history.num_events == 60)
    fed.clear()
    before = histories(driver) or await serve(broker, config, 60)
    fed.clear()
    async with kafka_worker(broker, config) as again:
        assert fed == []
        assert histories(again) == before
        assert {user: len(items) for user, items in before.items()} == dict.fromkeys(USERS, 5)
        await send(broker, config, ["item-new"])
        await until(lambda: again.runtime.setup.engine.history.num_events == 72)
        again.runtime.setup.engine.history.check_integrity()


async def test_a_killed_worker_goes_on_from_its_last_snapshot(
    broker: Broker, config: StreamConfig, fed: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kafka_worker(broker, config) as driver:
        await send(broker, config, ["item-1", "item-2", "item-3"])
        await until(lambda: driver.runtime.setup.engine.history.num_events == 36)
        snapshots = driver.runtime._snapshots
        assert snapshots is not None
        assert all([await snapshots.write(number) for number in range(4)])
        monkeypatch.setattr(snapshots, "write_all", lambda: asyncio.sleep(0))  # as if it had been killed
        await send(broker, config, ["item-4"])
        await until(lambda: driver.runtime.setup.engine.history.num_events == 48)
    fed.clear()
    known = await serve(broker, config, 48)
    assert len(fed) == 12
    assert known == {user: [f"item-{i}" for i in range(1, 5)] for user in USERS}


@pytest.mark.parametrize("reason", ["damaged", "foreign", "unfit"])
async def test_what_is_not_to_be_trusted_is_ignored_and_counted(
    broker: Broker, config: StreamConfig, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with kafka_worker(broker, config) as driver:
        await send(broker, config, ["item-1", "item-2"])
        await until(lambda: driver.runtime.setup.engine.history.num_events == 24)
        snapshots = driver.runtime._snapshots
        assert snapshots is not None
        anchors, paths = snapshots._anchors.copy(), [snapshots.path(number) for number in range(4)]
    for number, path in enumerate(paths):
        name, offset = anchors[number]
        if reason == "damaged":
            data = bytearray(path.read_bytes())
            data[20] ^= 1
            path.write_bytes(data)
        else:  # of another topic of this name; or from before a late writer's record that it lacks
            source = Source(
                config.topics.changelog,
                number,
                name if reason == "unfit" else b"another",
                offset,
                offset + (3 if reason == "unfit" else 0),
                config.history.keep_events,
                config.history.segment_events,
            )
            writer = SnapshotWriter(path)
            writer.finish(source, HistoryStore(config.history), [], {}, [])
            writer.publish()
    with caplog.at_level(logging.WARNING):
        async with kafka_worker(broker, config) as again:
            assert histories(again) == {user: ["item-1", "item-2"] for user in USERS}
            assert ignored(again, reason) == 4
    assert f"is ignored ({reason})" in caplog.text
    async with kafka_worker(broker, config) as healed:
        assert ignored(healed, reason) == 0
        assert len(histories(healed)) == 12


async def test_forgotten_users_are_in_no_later_snapshot(broker: Broker, config: StreamConfig) -> None:
    async with kafka_worker(broker, config, NullEngine()) as driver:
        await send(broker, config, ["item-1"])
        history = driver.runtime.setup.engine.history
        await until(lambda: history.num_events == 12)
        for user in USERS[:3]:
            await driver.runtime.producer.send_and_wait(config.topics.events, None, user.encode())
        await until(lambda: history.num_users == 9)
        snapshots = driver.runtime._snapshots
        assert snapshots is not None
        paths = [snapshots.path(number) for number in range(4)]
    written = b"".join(path.read_bytes() for path in paths)
    assert USERS[0].encode() not in written.replace(b"user-10", b"").replace(b"user-11", b"")
    async with kafka_worker(broker, config) as again:
        assert sorted(histories(again)) == sorted(USERS[3:])
