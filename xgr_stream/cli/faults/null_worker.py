"""A worker process without a model: `python -m xgr_stream.cli.faults.null_worker JSON`.

The JSON names `broker`, `group`, `topics`, `name` (what its answers name as their model), `port` and
`session_timeout_s`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from xgr_stream.cli.logs import log_to_stderr
from xgr_stream.cli.signals import FirstSignal
from xgr_stream.config import EngineConfig, StreamConfig, TopicNames
from xgr_stream.metrics import Metrics
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.health import Pages, served
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.setup import Setup
from xgr_stream.testing import NullEngine


async def serve(settings: dict[str, Any], signals: FirstSignal) -> None:
    """Until SIGTERM."""
    config, metrics = StreamConfig(topics=TopicNames(**settings["topics"])), Metrics()
    connection = Connection(settings["broker"], session_timeout_ms=round(settings["session_timeout_s"] * 1000))
    engine = NullEngine(version=settings["name"])
    driver = KafkaDriver(Setup(engine, connection, settings["group"], config, EngineConfig(), metrics))
    signals.calls(driver.stop)
    async with served(Pages(lambda: driver.runtime, metrics), "127.0.0.1", settings["port"]):
        await driver.run()


if __name__ == "__main__":
    log_to_stderr()
    with FirstSignal() as signals:
        asyncio.run(serve(json.loads(sys.argv[1]), signals))
