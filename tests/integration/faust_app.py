"""A Faust app with a recommender, run as a process by the tests. Prints its readiness whenever that changes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence

import faust

import xgr_stream as xgr
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.testing import NullEngine
from xgr_stream.testing.broker import EmbeddedBroker


def slow_engine() -> NullEngine:
    engine = NullEngine()

    def before_answer(batch: Sequence[object]) -> None:
        sys.stdout.write(json.dumps({"answering": len(batch)}) + "\n")  # in one piece: another thread writes, too
        sys.stdout.flush()
        time.sleep(0.5)

    engine.before_answer = before_answer
    return engine


def tiny_engine() -> xgr.Engine:
    from xgr_stream.testing import tiny_catalog, tiny_model  # with torch, which takes a process 3 s of CPU time

    return xgr.Engine.load(tiny_model(), tiny_catalog())


ENGINES = {"null": NullEngine, "slow": slow_engine, "tiny": tiny_engine}


def to_event(view: dict[str, str]) -> xgr.UserEvent:
    """What a page view tells of its user. Page views are keyed by page."""
    return xgr.UserEvent(view["visitor"], view["page"])


async def main(settings: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as data:
        app = faust.App(
            settings["group"],
            broker=f"kafka://{settings['broker']}",
            web_enabled=False,
            datadir=data,
            consumer_auto_offset_reset="earliest",
            broker_session_timeout=6.0,
            broker_rebalance_timeout=4.0,
            broker_heartbeat_interval=0.5,
            broker_commit_interval=2.8 if settings["commits"] else 3600.0,
        )
        if settings["embedded"]:
            EmbeddedBroker().tune(app)
        engine = ENGINES[settings["engine"]]()
        sources = [app.topic(name, value_serializer="json") for name in settings["sources"]]
        xgr.attach(
            app,
            engine=engine,
            config=xgr.StreamConfig(topics=xgr.TopicNames(**settings["topics"])),
            events=sources or None,
            event=to_event if sources else None,
            repartition=bool(sources),
        )
        app.finalize()
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
        await app.start()
        telling = asyncio.create_task(tell(next(s for s in app._children if isinstance(s, FaustDriver))))
        await app.wait_for_stopped(stopping.wait())
        telling.cancel()
        await app.stop()
        if app.crash_reason is not None:
            raise app.crash_reason


async def tell(driver: FaustDriver) -> None:
    told = None
    while True:
        now = None if driver.runtime is None else driver.runtime.readiness()
        if now != told and now is not None and now["partitions"]:
            print(json.dumps(now), flush=True)
            told = now
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    if chosen["waits"]:
        sys.stdin.readline()
    asyncio.run(main(chosen))
