"""Real users' events go through a Kafka-protocol broker into a Faust app and come back as recommendations.

    python -m examples.movielens.demo                               # an embedded broker
    python -m examples.movielens.demo --broker localhost:9092    # yours

The first run trains the model (about two minutes on two cores) and keeps it in models/movielens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from examples.movielens import report
from examples.movielens.app import MIB, topic_names
from examples.movielens.data import DataMissing, MovieLens, UserEvents, load
from examples.movielens.process import AppProcess
from examples.movielens.recipes import QUICK
from examples.movielens.replay import Replay, Replayed, timeline
from examples.movielens.timing import ColdAndWarm, Latency, Prober
from examples.movielens.train import BEAM, K, checkpoint_path, is_trained, train
from xgr_stream import RecommendClient
from xgr_stream.testing.broker import Broker, EmbeddedBroker, OutsideBroker

REPLAY_CACHE_BYTES = 1024 * MIB
COLD_CACHE_BYTES = 4 * MIB
"""Room for three users' prefixes, so that after a restart every user's first request is cold."""

TIMED_USERS = 60

GOAL = 1.5
"""Times as many hits as popularity has, at least, for the demo's own model to be of use."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that the demo measured."""

    replayed: Replayed
    users_warm: int
    timed: ColdAndWarm
    requests_per_second: float
    failed: int


@click.command(context_settings={"show_default": True})
@click.option("--users", type=click.IntRange(2), default=150, help="How many users' events to replay.")
@click.option("--broker", "bootstrap", help="host:port of a broker that runs already, instead of the embedded one.")
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A trained checkpoint.")
@click.option("--seed", default=0, help="Draws the users.")
def main(users: int, bootstrap: str | None, model: Path | None, seed: int) -> None:
    """Replay MovieLens users through a broker and a Faust app, and judge what is recommended.

    Exits with 1 if a request was not answered, or if the demo's own model (no --model) misses its goal."""
    started = time.perf_counter()
    try:
        data = load()
    except DataMissing as error:
        raise click.ClickException(str(error)) from error
    path = model or _trained(data)
    chosen = random.Random(seed).sample(data.users, min(users, len(data.users)))
    broker = OutsideBroker(bootstrap) if bootstrap else EmbeddedBroker()
    if not bootstrap:
        _expect_embedded_broker()
    with broker:
        outcome = asyncio.run(_run(data, chosen, path, broker))
    report.show_users(data, chosen, outcome.replayed.answers)
    figures = _print_summary(
        data, chosen, outcome, "through the embedded broker" if bootstrap is None else "end to end"
    )
    conditions = {**_conditions(path, outcome), "seconds": round(time.perf_counter() - started, 1)}
    click.echo(json.dumps({**figures, **conditions}))
    missed = figures["hit_rate_factor"] < GOAL
    if missed:
        click.secho(
            f"the goal was missed: {GOAL} times as many hits as popularity has, and it is {figures['hit_rate_factor']}",
            fg="red",
            err=True,
        )
    if outcome.failed:
        click.secho(f"{outcome.failed} requests were not answered", fg="red", err=True)
    sys.exit(1 if outcome.failed or (missed and model is None) else 0)


def _trained(data: MovieLens) -> Path:
    path = checkpoint_path(QUICK)
    if not is_trained(path, QUICK):
        report.heading("First run: semantic IDs and a small decoder are trained, and kept for the next runs")
        torch.set_num_threads(min(2, torch.get_num_threads()))
        train(data, QUICK, path, "python -m examples.movielens.train", sasrec=False)
    return path


def _expect_embedded_broker() -> None:
    """It refuses idempotent producers, which is worth a warning everywhere else."""
    for name in ("aiokafka", "xgr_stream.stream.connection"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


async def _run(data: MovieLens, users: list[UserEvents], model: Path, broker: Broker) -> Outcome:
    """Two lives of the app: one that takes in the events and answers between them, and one that begins with an empty
    cache and the histories that the first left in the changelog."""
    run = secrets.token_hex(4)
    topics = topic_names(run)
    report.heading(f"{len(users)} users' events, in time order, through {broker.bootstrap} into a Faust app")
    with AppProcess(
        broker, run, model, beam=BEAM, cache_bytes=REPLAY_CACHE_BYTES, warm=True, label="starting the app"
    ) as app:
        async with RecommendClient(broker.connection, topics=topics) as client:
            steps = timeline(users)
            with tqdm(total=len(steps), desc="replaying", unit="event", dynamic_ncols=True, mininterval=0.5) as bar:
                replayed = await Replay(data, client, K).run(steps, bar.update)
            burst = Prober(data, client, replayed, K)
            rate = await burst.requests_per_second(users)
            users_warm = int(app.metric("xgr_users_warm"))
    with AppProcess(
        broker, run, model, beam=BEAM, cache_bytes=COLD_CACHE_BYTES, warm=False, label="restarting the app"
    ):
        async with RecommendClient(broker.connection, topics=topics) as client:
            pairs = Prober(data, client, replayed, K)
            with tqdm(total=min(TIMED_USERS, len(users)), desc="cold and warm", unit="user", dynamic_ncols=True) as bar:
                timed = await pairs.cold_and_warm(users[:TIMED_USERS], bar.update)
    answers = [*replayed.answers, *burst.answers, *pairs.answers]
    failures = [answer.error for answer in answers if answer.response is None]
    for error in failures[:5]:
        click.secho(f"a request was not answered: {error}", fg="red", err=True)
    return Outcome(replayed, users_warm, timed, rate, len(failures))


def _conditions(model: Path, outcome: Outcome) -> dict[str, object]:
    """What the figures were computed with."""
    settings = json.loads((model / "xgr.json").read_text(encoding="utf-8"))
    response = outcome.timed.warm[0].response
    versions = {} if response is None else {"model": response.model_version, "catalog": response.catalog_version}
    return {"beam_width": BEAM, "normalizer": settings.get("normalizer", "level"), **versions}


def _print_summary(data: MovieLens, users: list[UserEvents], outcome: Outcome, route: str) -> dict[str, Any]:
    """The summary; returns its figures."""
    replayed = outcome.replayed
    model = report.model_quality(data, replayed.answers, K)
    popular = report.popularity_quality(data, replayed.answers, K)
    cold, warm = Latency.of(outcome.timed.cold), Latency.of(outcome.timed.warm)
    longest = outcome.timed.longest_third()
    lift = model.recall / popular.recall if popular.recall else float("inf")
    events_per_second = replayed.num_events / replayed.seconds
    report.heading("Summary")
    click.echo(
        f"hit rate at {K}   {model.recall:.3f}, popularity {popular.recall:.3f}: {lift:.1f} times as many hits, "
        f"on {model.users} events that training never saw"
    )
    for name, latency in (("warm", warm), ("cold", cold)):
        click.echo(
            f"{name} request     P50 {latency.p50:.1f} ms, P99 {latency.p99:.1f} ms in the app; "
            f"P50 {latency.end_to_end_p50:.1f} ms, P99 {latency.end_to_end_p99:.1f} ms {route}"
        )
    click.echo(
        f"warm vs cold     {outcome.timed.factor:.1f} times faster, the same {warm.requests} users one by one; "
        f"{longest.factor:.1f} times for the third of at least {longest.cold[-1].number} movies"
    )
    click.echo(
        f"throughput       {events_per_second:,.0f} events/s with {len(replayed.answers)} requests between them; "
        f"{outcome.requests_per_second:,.0f} requests/s"
    )
    click.echo(f"users warm       {outcome.users_warm} of {len(users)}")
    return {
        "users": len(users),
        "events": replayed.num_events,
        "requests_failed": outcome.failed,
        "scored_events": model.users,
        "hit_rate_at_10": round(model.recall, 4),
        "popularity_hit_rate_at_10": round(popular.recall, 4),
        "hit_rate_factor": round(lift, 2),
        "warm_p50_ms": round(warm.p50, 2),
        "warm_p99_ms": round(warm.p99, 2),
        "cold_p50_ms": round(cold.p50, 2),
        "cold_p99_ms": round(cold.p99, 2),
        "warm_end_to_end_p50_ms": round(warm.end_to_end_p50, 2),
        "cold_end_to_end_p50_ms": round(cold.end_to_end_p50, 2),
        "cold_over_warm": round(outcome.timed.factor, 2),
        "cold_over_warm_long_histories": round(longest.factor, 2),
        "events_per_second": round(events_per_second, 1),
        "requests_per_second": round(outcome.requests_per_second, 1),
        "users_warm": outcome.users_warm,
    }


if __name__ == "__main__":
    main()
