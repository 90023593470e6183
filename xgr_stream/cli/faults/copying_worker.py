"""A worker process whose events are copies: `python -m xgr_stream.cli.faults.copying_worker JSON`.

It is an application with a topic of its own, `views`: JSON objects, keyed by session, of which those that name an item
are events (`attach(repartition=True)`). The JSON names `broker`, `group`, `topics`, `views`, `model`, `catalog`,
`port`, `session_timeout_s`, and what else `EngineConfig` (`engine`) and `StreamConfig` (`stream`) are to say.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

from xgr_stream.cli.faults.fleet import NO_BROKER
from xgr_stream.cli.faults.views import event_of
from xgr_stream.cli.faust_app import make_app, serve_app
from xgr_stream.cli.logs import log_to_stderr
from xgr_stream.cli.signals import FirstSignal
from xgr_stream.config import CacheConfig, EngineConfig, StreamConfig, TopicNames
from xgr_stream.stream import attach
from xgr_stream.stream.connection import UNREACHABLE, Connection


async def serve(settings: dict[str, Any], signals: FirstSignal) -> None:
    """Until SIGTERM."""
    connection = Connection(settings["broker"], session_timeout_ms=round(settings["session_timeout_s"] * 1000))
    app = make_app(connection, settings["group"], ("127.0.0.1", settings["port"]))
    cache = CacheConfig(budget_bytes=settings["cache_bytes"])
    config = StreamConfig(topics=TopicNames(**settings["topics"]), **settings["stream"])
    attach(
        app,
        model=settings["model"],
        catalog=settings["catalog"],
        config=config,
        engine_config=EngineConfig(cache=cache, **settings["engine"]),
        events=settings["views"],
        event=event_of,
        repartition=True,
    )
    await serve_app(app, config.shutdown_timeout_s, signals)


if __name__ == "__main__":
    log_to_stderr()
    logging.getLogger("xgr_stream.stream.recovery").setLevel(logging.INFO)  # what the fleet counts
    settings = json.loads(sys.argv[1])
    try:
        with FirstSignal() as signals:
            asyncio.run(serve(settings, signals))
    except UNREACHABLE as error:
        sys.exit(f"{NO_BROKER}{settings['broker']}: {error}")
