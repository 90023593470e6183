"""`xgr-stream worker`: consume events and answer requests, without an application of one's own."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from xgr_stream.cli.broker import broker_options, topic_options
from xgr_stream.cli.cache import cache_options
from xgr_stream.cli.challenger import challenger_options
from xgr_stream.cli.exit_codes import exit_code
from xgr_stream.cli.kinds import SESSION_TIMEOUT, Name
from xgr_stream.cli.signals import FirstSignal, first_signal
from xgr_stream.config import (
    MIB,
    CacheConfig,
    ChallengerConfig,
    EngineConfig,
    SnapshotConfig,
    StreamConfig,
    TopicNames,
    TransactionConfig,
    is_topic_name,
)
from xgr_stream.errors import DeviceLost, Fenced
from xgr_stream.types import MAX_BEAM_WIDTH

if TYPE_CHECKING:
    from xgr_stream.stream.connection import Connection
    from xgr_stream.stream.runtime import Runtime
    from xgr_stream.stream.setup import Setup

COLLECTOR = 20_000, 20, 100
"""When the cyclic collector looks for garbage. By default it does after 700 objects, and an answer of ten items makes
and drops a hundred: a quarter of a request's time, for nothing."""
SESSION_TIMEOUT_S = 10.0
"""Faust's own default is a minute."""


@click.command()
@first_signal
@click.option("--model", required=True, type=click.Path(exists=True, file_okay=False), help="Checkpoint directory.")
@click.option("--catalog", required=True, type=click.Path(exists=True), help="Catalog file, or a table of items.")
@click.option("--group", default="xgr-stream", type=Name(), help="Consumer group; its workers share the partitions.")
@click.option("--partitions", default=4, type=click.IntRange(1), help="Partitions of topics that are missing.")
@topic_options
@click.option("--driver", type=click.Choice(["kafka", "faust"]), default="kafka", help="What consumes the topics.")
@click.option(
    "--session-timeout",
    default=SESSION_TIMEOUT_S,
    type=SESSION_TIMEOUT,
    metavar="SECONDS",
    help="How long a worker may be silent before its partitions go to another.",
)
@click.option("--device", default="cpu", help="Where the model computes.")
@click.option(
    "--beam-width", default=64, type=click.IntRange(1, MAX_BEAM_WIDTH), help="Beams of a request that names none."
)
@click.option(
    "--prefill-chunk-tokens",
    type=click.IntRange(0),
    help="How much of another user's prefill a request waits for (0: all of it).  [default: 384 on CUDA, else 0]",
)
@cache_options
@challenger_options
@click.option("--web-host", default="127.0.0.1", help="Address of /metrics, /healthz, /readyz and /models.")
@click.option("--web-port", default=9464, type=click.IntRange(1, 65_535), help="Its port.")
@click.option("--snapshots", type=click.Path(file_okay=False), help="Directory for local copies of the histories.")
@click.option(
    "--standby-mib", default=0, type=click.IntRange(0), help="Memory for copies of other workers' histories (0: none)."
)
@click.option(
    "--transactional", is_flag=True, help="Each answer once for readers with read_committed (aiokafka driver)."
)
@click.option(
    "--commit-interval",
    default=TransactionConfig().commit_interval_ms,
    type=click.IntRange(0),
    metavar="MS",
    help="How long events wait for each other to share a transaction; an answer waits for nothing.",
)
@click.option("--instance", type=Name(), help="Name of this worker's own for static membership: kept across restarts.")
@broker_options
def worker(
    signals: FirstSignal,
    connection: Connection,
    model: str,
    catalog: str,
    group: str,
    partitions: int,
    topics: TopicNames,
    driver: str,
    session_timeout: float,
    device: str,
    beam_width: int,
    prefill_chunk_tokens: int | None,
    cache: CacheConfig,
    challenger: ChallengerConfig | None,
    web_host: str,
    web_port: int,
    snapshots: str | None,
    standby_mib: int,
    transactional: bool,
    commit_interval: int,
    instance: str | None,
) -> None:
    """Consume events and answer requests, without a Faust app. SIGTERM: what was taken is answered first.

    Exits with 0 after a SIGTERM or SIGINT, 1 for what it can't go on with, 2 for wrong options, 3 when the device
    failed, 4 when another process keeps taking its transactions over, or has joined under its name.
    """
    from aiokafka.errors import KafkaError

    from xgr_stream.cli.logs import log_to_stderr
    from xgr_stream.engine import Engine
    from xgr_stream.history import HistoryStore
    from xgr_stream.metrics import Metrics
    from xgr_stream.scheduler.versions import Versions
    from xgr_stream.stream.connection import UNREACHABLE
    from xgr_stream.stream.setup import Setup

    log_to_stderr()
    connection = replace(connection, session_timeout_ms=round(session_timeout * 1000), group_instance_id=instance)
    if transactional and driver == "faust":
        raise click.UsageError("--transactional needs --driver kafka: Faust commits offsets by itself")
    if driver == "faust" and not is_topic_name(leader := f"{group}-__assignor-__leader"):
        raise click.BadParameter(f"Faust names a topic {leader!r}, which can't be one's name", param_hint="--group")
    config = StreamConfig(
        topics=topics,
        partitions=partitions,
        snapshots=None if snapshots is None else SnapshotConfig(snapshots),
        standby_bytes=standby_mib * MIB,
        transactions=TransactionConfig(commit_interval_ms=commit_interval) if transactional else None,
    )
    engine_config = EngineConfig(
        device=device, beam_width=beam_width, cache=cache, prefill_chunk_tokens=prefill_chunk_tokens
    )
    engine = Engine.load(model, catalog, config=engine_config, history=HistoryStore(config.history))
    engine.prepare()
    setup = Setup(Versions(engine), connection, group, config, engine_config, Metrics(), challenger=challenger)
    del engine  # the versions alone hold it: once another has taken its place, its memory is free
    serve = _serve_with_kafka if driver == "kafka" else _serve_with_faust
    try:
        gc.set_threshold(*COLLECTOR)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(setup, (web_host, web_port), signals))
        _leave_what_is_under_way()
    except UNREACHABLE as error:
        raise click.ClickException(f"no broker at {connection.bootstrap} (--broker): {error}") from error
    except KafkaError as error:
        raise click.ClickException(f"the broker refuses what a worker needs: {error}") from error
    except (DeviceLost, Fenced) as error:
        failure = click.ClickException(f"{error.code}: {error}")
        failure.exit_code = exit_code(error)
        raise failure from error


def _leave_what_is_under_way() -> None:
    """End here if a merge or a load still runs: torch on a thread aborts a process that finalizes around it."""
    from xgr_stream.stream.threads import under_way

    if under_way():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


async def _serve_with_kafka(setup: Setup, web: tuple[str, int], signals: FirstSignal) -> None:
    from xgr_stream.stream.control import ModelsPage
    from xgr_stream.stream.health import Pages, served
    from xgr_stream.stream.kafka_driver import KafkaDriver

    driver: KafkaDriver | None = None

    def runtime() -> Runtime | None:
        return None if driver is None else driver.runtime

    models = ModelsPage(runtime)
    control = {"GET": models.get, "POST": models.post}
    async with served(Pages(runtime, setup.metrics), *web, control=control):
        driver = KafkaDriver(setup)  # not before: nothing would stop its consumer if there were no port
        signals.calls(driver.stop)
        served_from = f"{setup.config.topics.requests} from {setup.connection.bootstrap}"
        click.echo(f"serving {served_from}; metrics on http://{web[0]}:{web[1]}/metrics")
        await driver.run()


async def _serve_with_faust(setup: Setup, web: tuple[str, int], signals: FirstSignal) -> None:
    import faust

    from xgr_stream.cli.faust_app import make_app, serve_app
    from xgr_stream.stream import attach
    from xgr_stream.stream.control import ModelsPage

    app = make_app(setup.connection, setup.group_id, web)
    recommender = attach(
        app,
        engine=setup.engine,
        challenger=setup.challenger,
        config=setup.config,
        engine_config=setup.engine_config,
        metrics=setup.metrics,
    )
    models = ModelsPage(lambda: recommender.runtime)

    class ModelsView(faust.web.View):
        async def get(self, request: Any) -> Any:
            return await models.get(request)

        async def post(self, request: Any) -> Any:
            return await models.post(request)

    app.page("/models", name="xgr-models")(ModelsView)
    await serve_app(app, setup.config.shutdown_timeout_s, signals)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: a fifth more events per second."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
