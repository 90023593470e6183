"""The Faust app of the demo: `attach` makes it take in events and answer requests. Runs as a process of its own.

python -m examples.movielens.app --broker localhost:9092 --run demo
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import click
import faust

import xgr_stream as xgr
from xgr_stream.testing.broker import EmbeddedBroker

MIB = 1 << 20


def topic_names(run: str) -> xgr.TopicNames:
    """Topics of one run of the demo, so that runs on one broker do not see each other's events."""
    return xgr.TopicNames(
        events=f"movielens-{run}-events",
        requests=f"movielens-{run}-requests",
        responses=f"movielens-{run}-responses",
        dead_letters=f"movielens-{run}-dead-letters",
        changelog=f"movielens-{run}-history",
        catalog=f"movielens-{run}-catalog-updates",
    )


@click.command(context_settings={"show_default": True})
@click.option("--broker", "bootstrap", default="localhost:9092")
@click.option("--embedded", is_flag=True, help="The broker is the embedded one, which wants to be asked often.")
@click.option("--run", required=True, help="Names this run's topics and consumer group.")
@click.option("--model", default="models/movielens", type=click.Path(exists=True, path_type=Path))
@click.option("--beam", default=50)
@click.option("--cache-bytes", default=512 * MIB)
@click.option("--warm-users", default=10_000, help="Users to warm after a restart, at most.")
@click.option("--web-port", default=6066)
def main(
    bootstrap: str,
    embedded: bool,
    run: str,
    model: Path,
    beam: int,
    cache_bytes: int,
    warm_users: int,
    web_port: int,
) -> None:
    """Serve recommendations until told to stop."""
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="movielens-") as datadir:
        app = faust.App(
            f"movielens-{run}",
            broker=f"kafka://{bootstrap}",
            datadir=datadir,
            web_bind="127.0.0.1",
            web_port=web_port,
            broker_session_timeout=6,
            broker_rebalance_timeout=2,
            broker_heartbeat_interval=0.5,
        )
        if embedded:
            EmbeddedBroker().tune(app)
        xgr.attach(
            app,
            model=model,
            catalog=model / "catalog.parquet",
            config=xgr.StreamConfig(topics=topic_names(run), warm_users=warm_users),
            engine_config=xgr.EngineConfig(beam_width=beam, cache=xgr.CacheConfig(budget_bytes=cache_bytes)),
        )
        faust.Worker(app, loglevel="warning").execute_from_commandline()


if __name__ == "__main__":
    main()
