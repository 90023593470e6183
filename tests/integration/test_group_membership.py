"""What keeps a worker out of its group, or takes its place there, ends it with the reason."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.group_coordinator import GroupCoordinator

from tests.integration.workers import until
from xgr_stream.cli.faust_app import make_app
from xgr_stream.config import EngineConfig, StreamConfig
from xgr_stream.errors import ConfigError, Fenced
from xgr_stream.metrics import Metrics
from xgr_stream.stream.attachment import attach
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.setup import Setup
from xgr_stream.testing import NullEngine
from xgr_stream.testing.broker import Broker, free_port

pytestmark = pytest.mark.skipif(
    "XGR_TEST_KAFKA_HOME" not in os.environ, reason="needs Apache Kafka: XGR_TEST_KAFKA_HOME"
)

Worker = tuple[Coroutine[Any, Any, None], Callable[[], bool], Callable[[], object]]
"""What runs until it ends and raises why, whether it serves partitions, and what stops it."""


def kafka(connection: Connection, config: StreamConfig, data: Path) -> Worker:
    group = f"group-{config.topics.events}"
    driver = KafkaDriver(Setup(NullEngine(), connection, group, config, EngineConfig(), Metrics()))
    return driver.run(), lambda: serves(driver.runtime), driver.stop


def faust(connection: Connection, config: StreamConfig, data: Path) -> Worker:
    app = make_app(connection, f"group-{config.topics.events}", ("127.0.0.1", free_port()))
    app.conf.datadir = data
    recommender = attach(app, engine=NullEngine(), config=config)

    told = asyncio.Event()

    async def run() -> None:
        app.finalize()
        try:
            await app.start()
            await app.wait_for_stopped(told)
        finally:
            await app.stop()
        if app.crash_reason is not None:
            raise app.crash_reason

    return run(), lambda: serves(recommender.runtime), told.set


def serves(runtime: Runtime | None) -> bool:
    readiness = {} if runtime is None else runtime.readiness()
    return bool(readiness.get("ready") and readiness["partitions"])


@pytest.mark.parametrize("driver", [kafka, faust])
async def test_who_leads_the_group_may_once_know_no_partitions(
    driver: Callable[..., Worker],
    broker: Broker,
    config: StreamConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a broker that has just started may have it: everybody was given none, for five minutes."""
    perform, wait = GroupCoordinator._perform_assignment, AIOKafkaClient._maybe_wait_metadata
    leaders: list[AIOKafkaClient] = []

    async def perform_once_without_knowing(coordinator: GroupCoordinator, response: Any) -> Any:
        leaders.append(coordinator._client)
        return await perform(coordinator, response)

    async def is_told_nothing(client: AIOKafkaClient) -> None:
        await wait(client)
        if leaders == [client]:
            client.cluster._partitions.clear()

    monkeypatch.setattr(GroupCoordinator, "_perform_assignment", perform_once_without_knowing)
    monkeypatch.setattr(AIOKafkaClient, "_maybe_wait_metadata", is_told_nothing)
    running, serving, stop = driver(broker.connection, replace(config, partitions=4), tmp_path)
    task = asyncio.ensure_future(running)
    await until(serving, 40)
    assert len(leaders) > 1
    stop()
    await task


@pytest.mark.parametrize("driver", [kafka, faust])
async def test_a_session_that_the_brokers_do_not_allow(
    driver: Callable[..., Worker], broker: Broker, config: StreamConfig, tmp_path: Path
) -> None:
    connection = replace(broker.connection, session_timeout_ms=100)
    running, _, _ = driver(connection, replace(config, partitions=4), tmp_path)
    async with asyncio.timeout(40):
        with pytest.raises(
            ConfigError, match=r"between the broker's group\.min\.session\.timeout\.ms and .*, not 100 ms"
        ):
            await running


@pytest.mark.parametrize("driver", [kafka, faust])
async def test_a_name_that_another_worker_takes(
    driver: Callable[..., Worker], broker: Broker, config: StreamConfig, tmp_path: Path
) -> None:
    """The first ends; the second serves, as it would where one starts before the other has ended."""
    connection = replace(broker.connection, group_instance_id="worker-1")
    config = replace(config, partitions=4)
    running, ready, _ = driver(connection, config, tmp_path / "first")
    first = asyncio.create_task(running)
    await until(lambda: first.done() or ready())
    running, ready, stop = driver(connection, config, tmp_path / "second")
    second = asyncio.create_task(running)
    async with asyncio.timeout(40):
        with pytest.raises(Fenced, match="another worker has joined the group as worker-1"):
            await first
    await until(lambda: second.done() or ready())
    stop()
    await second
