"""The worker of `bench stream`, a process of its own: `python -m xgr_stream.cli.benches.stream_worker '<JSON>'`.

It writes one JSON line for each line that it is sent: whether it is ready, and what it has done so far.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from xgr_stream.config import EngineConfig, StreamConfig, TopicNames
from xgr_stream.metrics import Metrics
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.setup import ServedEngine, Setup
from xgr_stream.testing.broker import EmbeddedBroker
from xgr_stream.testing.null_engine import NullEngine
from xgr_stream.testing.paced_engine import PacedEngine, StepTimes


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["core"] is not None:
        os.sched_setaffinity(0, {settings["core"]})
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    from xgr_stream.cli.worker import COLLECTOR

    gc.set_threshold(*COLLECTOR)
    serve = {"kafka": _with_kafka, "faust": _with_faust, "echo": _echo}[settings["driver"]]
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    from xgr_stream.cli.worker import _loop_factory as factory

    return factory()


def _engine(settings: dict[str, Any]) -> ServedEngine:
    if settings["engine"] == "null":
        return NullEngine(bytes_budget=1 << 40)
    if settings["engine"] == "paced":
        return PacedEngine(StepTimes(*settings["times"]), beam_width=settings["beam"], bytes_budget=1 << 40)
    from xgr_stream.engine import Engine

    return Engine.load(settings["model"], settings["catalog"], config=EngineConfig(beam_width=settings["beam"]))


def _config(settings: dict[str, Any]) -> StreamConfig:
    return StreamConfig(topics=TopicNames(**settings["topics"]), default_timeout_ms=settings["timeout_ms"])


async def _with_kafka(settings: dict[str, Any]) -> None:
    from xgr_stream.stream.kafka_driver import KafkaDriver

    metrics = Metrics()
    connection = Connection(settings["broker"])
    if settings["embedded"]:
        connection = EmbeddedBroker()._connection(settings["broker"])
    config = EngineConfig(beam_width=settings["beam"])
    driver = KafkaDriver(Setup(_engine(settings), connection, settings["group"], _config(settings), config, metrics))
    telling = asyncio.create_task(_tell(lambda: driver.runtime, metrics))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, driver.stop)
    await driver.run()
    telling.cancel()


async def _with_faust(settings: dict[str, Any]) -> None:
    from xgr_stream.stream import attach

    app = _app(settings)
    recommender = attach(
        app,
        engine=_engine(settings),
        config=_config(settings),
        engine_config=EngineConfig(beam_width=settings["beam"]),
    )
    driver: Any = next(service for service in _dependencies(app) if hasattr(service, "runtime"))
    await _run_app(app, _tell(lambda: driver.runtime, recommender.metrics))


async def _echo(settings: dict[str, Any]) -> None:
    """A bare Faust agent that sends each request back, with the app's own producer, as its documentation has it."""
    app = _app(settings)
    topics = settings["topics"]
    requests = app.topic(topics["requests"], value_type=bytes, key_type=bytes, value_serializer="raw")
    responses = app.topic(topics["responses"], value_type=bytes, key_type=bytes, value_serializer="raw")

    async def echo(stream: Any) -> None:
        async for event in stream.events():
            await responses.send(key=event.key, value=event.value)

    app.agent(requests)(echo)
    await _run_app(app, _tell(lambda: None, None, lambda: bool(app.consumer.assignment()) and not app.rebalancing))


def _app(settings: dict[str, Any]) -> Any:
    import faust

    app = faust.App(
        settings["group"],
        broker=f"kafka://{settings['broker']}",
        web_enabled=False,
        consumer_auto_offset_reset="earliest",
        autodiscover=False,
        topic_disable_leader=True,
    )
    if settings["embedded"]:
        broker = EmbeddedBroker()
        broker.tune(app)
    return app


def _dependencies(app: Any) -> list[Any]:
    return list(app._children)


async def _run_app(app: Any, telling: Any) -> None:
    from xgr_stream.cli.faust_app import END_S, stop_app

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    app.finalize()
    await app.start()
    task = asyncio.create_task(telling)
    try:
        await app.wait_for_stopped(stopping.wait())
    finally:
        task.cancel()
        await stop_app(app, END_S)


async def _tell(
    runtime: Callable[[], Runtime | None], metrics: Metrics | None, ready: Callable[[], bool] | None = None
) -> None:
    """Answer each line of standard input."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        running = runtime()
        known = {
            "cpu_s": time.process_time(),
            "ready": ready() if ready else False,
            "events": 0.0,
            "requests": 0.0,
            "behind": 0.0,
        }
        if running is not None and metrics is not None:
            running.report()
            readiness = running.readiness()
            known |= {
                "ready": readiness["ready"] and bool(readiness["partitions"]),
                "events": metrics.registry.get_sample_value("xgr_events_total") or 0.0,
                "requests": sum(
                    s.value for m in metrics.requests.collect() for s in m.samples if s.name.endswith("_total")
                ),
                "behind": sum(sample.value for metric in metrics.events_behind.collect() for sample in metric.samples),
            }
        print(json.dumps(known), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)  # whoever started it is gone, and the broker with it


if __name__ == "__main__":
    main()
