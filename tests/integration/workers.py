"""Workers that a test runs: in its own event loop, or as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from aiokafka.admin import NewTopic

from xgr_stream.config import EngineConfig, StreamConfig, TopicNames
from xgr_stream.metrics import Metrics
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.setup import ServedEngine, Setup
from xgr_stream.testing import NullEngine
from xgr_stream.testing.broker import Broker, EmbeddedBroker

ROOT = Path(__file__).parent.parent.parent
READY_TIMEOUT_S = 120.0


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for something that another part brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  what is waited for knows of no event
            await asyncio.sleep(0.005)


async def make_topics(broker: Broker, *new: NewTopic) -> None:
    """Create them; a busy broker knows of them only a little later."""
    counts = {topic.name: topic.num_partitions for topic in new}
    admin = broker.connection.admin()
    await admin.start()
    try:
        await admin.create_topics(list(new))
        async with asyncio.timeout(30):
            while {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics([*counts])} != counts:  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def kafka_worker(
    broker: Broker, config: StreamConfig, engine: ServedEngine | None = None, *, group: str | None = None
) -> AsyncIterator[KafkaDriver]:
    """A worker of the aiokafka driver, ready for all partitions; stopped gracefully at the end."""
    setup = Setup(
        engine or NullEngine(),
        broker.connection,
        group or f"group-{config.topics.events}",
        config,
        EngineConfig(),
        Metrics(),
    )
    driver = KafkaDriver(setup)
    running = asyncio.create_task(driver.run())
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not (driver.runtime.readiness()["ready"] and driver.runtime.processor.assigned):
                if running.done():
                    running.result()
                await asyncio.sleep(0.01)
        yield driver
    finally:
        driver.stop()
        await running


class FaustWorker:
    """`python tests/integration/faust_app.py` as a process of its own."""

    def __init__(
        self,
        broker: Broker,
        topics: TopicNames,
        *,
        engine: str = "null",
        group: str = "",
        sources: Sequence[str] = (),
        waits: bool = False,
        commits: bool = True,
    ) -> None:
        """`sources`: topics of page views to repartition. `waits`: it loads, and joins when it is told to `go`.
        `commits`: false, it commits no offset while it runs."""
        self._settings = {
            "broker": broker.bootstrap,
            "embedded": isinstance(broker, EmbeddedBroker),
            "topics": asdict(topics),
            "engine": engine,
            "group": group or f"group-{topics.events}",
            "sources": list(sources),
            "waits": waits,
            "commits": commits,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> FaustWorker:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "tests" / "integration" / "faust_app.py"),
            json.dumps(self._settings),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    def go(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    async def ready(self, count: int | None = None) -> list[int]:
        """Wait until it serves its partitions (`count` of them, if given), and return them."""
        assert self.process is not None
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT_S):
            while line := await self.process.stdout.readline():
                readiness = json.loads(line)
                if readiness.get("ready") and (count is None or len(readiness["partitions"]) == count):
                    return list(readiness["partitions"])
        raise RuntimeError(f"the worker ended with {await self.process.wait()} before it was ready")

    async def answering(self) -> None:
        """Wait until the engine "slow" has begun to answer."""
        assert self.process is not None
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT_S):
            while line := await self.process.stdout.readline():
                if "answering" in json.loads(line):
                    return
        raise RuntimeError(f"the worker ended with {await self.process.wait()} before it answered")

    async def stop(self) -> int:
        """SIGTERM, and what it exits with."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
            await self.process.communicate()

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
