"""`xgr-stream soak`: workers, a broker and faults; then the proof that nothing was lost, doubled or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from xgr_stream.cli.kinds import SESSION_TIMEOUT

if TYPE_CHECKING:
    from xgr_stream.cli.faults.audit import Findings


@click.command()
@click.option(
    "--kafka-home",
    type=click.Path(exists=True, file_okay=False),
    help="Directory whose bin/kafka-node DATA PORT runs Apache Kafka; each run starts one of its own and breaks it.",
)
@click.option("--nodes", type=click.Choice(["1", "3"]), default="1", help="Its brokers; of three, one goes at a time.")
@click.option("--broker", help="HOST:PORT of brokers that run already, instead; they are not broken.")
@click.option("--seeds", default=1, type=click.IntRange(1), help="Runs, one after the other.")
@click.option("--first-seed", default=0, type=click.IntRange(0), help="Seed of the first run; each next is one more.")
@click.option("--minutes", default=2.0, type=click.FloatRange(0.1), help="Length of a run under load and faults.")
@click.option("--users", default=40, type=click.IntRange(1), help="Users that act and ask, the first ones most.")
@click.option("--events", default=60.0, type=click.FloatRange(1), help="Events per second.")
@click.option("--requests", default=15.0, type=click.FloatRange(1), help="Requests per second.")
@click.option("--partitions", default=4, type=click.IntRange(1), help="Partitions of the topics.")
@click.option("--workers", default=2, type=click.IntRange(1, 3), help="Workers at the start.")
@click.option("--session-timeout", default=6.0, type=SESSION_TIMEOUT, metavar="SECONDS", help="Of the workers.")
@click.option("--driver", type=click.Choice(["kafka", "faust"]), default="kafka", help="The workers' driver.")
@click.option("--transactional", is_flag=True, help="Workers with transactions: no answer may be seen twice.")
@click.option(
    "--standby/--no-standby",
    default=None,
    help="Workers keep copies of each other's histories, or not.  [default: with every second seed]",
)
@click.option("--copies", is_flag=True, help="Events come from another topic, which the workers copy (Faust's driver).")
@click.option("--logs", type=click.Path(file_okay=False), help="Keep the workers' logs of runs with differences here.")
def soak(
    kafka_home: str | None,
    nodes: str,
    broker: str | None,
    seeds: int,
    first_seed: int,
    minutes: float,
    users: int,
    events: float,
    requests: float,
    partitions: int,
    workers: int,
    session_timeout: float,
    driver: Literal["kafka", "faust"],
    transactional: bool,
    standby: bool | None,
    copies: bool,
    logs: str | None,
) -> None:
    """Run workers under load and faults, and audit what they did. Ends with 1 if anything is off.

    Faults, at random by seed: a worker is killed, frozen beyond its session, slowed, joins, leaves; the broker is
    stopped, killed; offsets are rewound while the group is stopped; messages are corrupt.

    The audit: every event is in its user's history once and in order, however often it was copied; every request is
    answered; every message that can't be read is a dead letter; answers that saw the same events are equal, and the
    engine's own.
    """
    from xgr_stream.cli.faults.plan import KINDS, OF_THE_BROKER, Soak
    from xgr_stream.cli.faults.run import soak as run

    if (kafka_home is None) == (broker is None):
        raise click.UsageError("one of --kafka-home and --broker must be given")
    kinds = KINDS if broker is None else tuple(kind for kind in KINDS if kind not in OF_THE_BROKER)
    if transactional and driver == "faust":
        raise click.UsageError("--transactional needs --driver kafka: Faust commits offsets by itself")
    if copies and driver == "kafka":
        raise click.UsageError("--copies needs --driver faust: an application's topics are repartitioned by its app")
    failed = []
    for seed in range(first_seed, first_seed + seeds):
        plan = Soak(
            seed=seed,
            seconds=minutes * 60,
            users=users,
            events_per_s=events,
            requests_per_s=requests,
            partitions=partitions,
            workers=workers,
            session_timeout_s=session_timeout,
            driver=driver,
            transactional=transactional,
            standby=seed % 2 == 1 if standby is None else standby,
            kinds=kinds,
            copies=copies,
            nodes=int(nodes),
        )
        how = (", transactions" if transactional else "") + (", standby copies" if plan.standby else "")
        how += ", events copied from another topic" if copies else ""
        click.echo(f"seed {seed}: {minutes:g} min, {workers} workers ({driver} driver{how})")
        with _clients_silent():
            findings = asyncio.run(run(plan, kafka_home, broker, click.echo, None if logs is None else Path(logs)))
        _show(findings)
        if findings.differences:
            failed.append(seed)
    click.echo(f"{seeds - len(failed)} of {seeds} runs without a difference")
    if failed:
        raise click.ClickException(f"differences with seeds {', '.join(map(str, failed))}")


@contextlib.contextmanager
def _clients_silent() -> Iterator[None]:
    """That the broker is away is no news here."""
    logger = logging.getLogger("aiokafka")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _show(findings: Findings) -> None:
    for name, value in findings.figures.items():
        click.echo(f"  {value:8d}  {name}")
    for difference in findings.differences:
        click.echo(f"  DIFFERENCE: {difference}")
    click.echo("  nothing lost, nothing doubled, every answer right" if not findings.differences else "")
