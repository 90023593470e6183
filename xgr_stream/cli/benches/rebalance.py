"""`xgr-stream bench rebalance`: requests at a steady rate while a second worker joins, then leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click
import numpy as np

from xgr_stream.cli.benches.options import Output, output_options
from xgr_stream.cli.benches.report import Report, start
from xgr_stream.cli.faults.handover import Answer, Handover, Phase, Rate, Silence, handover
from xgr_stream.cli.kinds import SESSION_TIMEOUT
from xgr_stream.testing.broker import ApacheKafka, Broker, OutsideBroker

COLUMNS = {
    "phase": "phase",
    "seconds": "seconds",
    "requests": "requests",
    "unanswered": "unanswered or refused",
    "p50_ms": "P50 ms",
    "p99_ms": "P99 ms",
    "max_ms": "max ms",
}


@click.command()
@click.option(
    "--kafka-home",
    type=click.Path(exists=True, file_okay=False),
    help="Directory whose bin/kafka-node DATA PORT runs Apache Kafka.",
)
@click.option("--broker", help="HOST:PORT of brokers that run already, instead.")
@click.option("--rate", default=500.0, type=click.FloatRange(1), help="Requests per second.")
@click.option("--seconds", default=10.0, type=click.FloatRange(1), help="Of each phase.")
@click.option("--users", default=1_000, type=click.IntRange(1), help="Users, with a few events each.")
@click.option("--partitions", default=4, type=click.IntRange(1), help="Partitions of the topics.")
@click.option("--session-timeout", default=10.0, type=SESSION_TIMEOUT, metavar="SECONDS", help="Of the workers.")
@output_options
def rebalance(
    kafka_home: str | None,
    broker: str | None,
    rate: float,
    seconds: float,
    users: int,
    partitions: int,
    session_timeout: float,
    output: Output,
) -> None:
    """Ask two worker processes without a model (aiokafka driver), one of which joins and leaves meanwhile.

    A request's time counts from when it was due. Ends with 1 if a request was refused or had no answer.
    """
    if (kafka_home is None) == (broker is None):
        raise click.UsageError("one of --kafka-home and --broker must be given")
    chosen: Broker = OutsideBroker(broker or "") if kafka_home is None else ApacheKafka(kafka_home)
    setting = {
        "requests": f"{rate:g}/s of {users} users, Poisson arrivals",
        "broker": "Apache Kafka, one node, of this run" if kafka_home else broker,
        "partitions": partitions,
        "session timeout": f"{session_timeout:g} s",
    }
    report = start("rebalance", COLUMNS, setting, output)
    with chosen:
        what = asyncio.run(handover(chosen.connection, Rate(rate, seconds, users, partitions, session_timeout)))
    lost = _report(report, what)
    report.finish(output)
    if lost:
        raise click.ClickException(f"{lost} requests were refused or had no answer")


def _report(report: Report, what: Handover) -> int:
    """Fill in the rows; how many requests were refused or had no answer."""
    for phase in what.phases:
        report.add(_row(phase, [a for a in what.answers if phase.start <= a.asked_at < phase.end]))
    report.notes.append(f"It joins: {_first_answers(what.joined)}.")
    report.notes.append(
        f"It leaves: {_first_answers(what.left)}; its process ended {what.leave_s:.2f} s after SIGTERM."
    )
    lost = sum(not answer.worker for answer in what.answers)
    report.notes.append(f"{len(what.answers)} requests, {lost} of them refused or without an answer.")
    return lost


def _row(phase: Phase, answers: Sequence[Answer]) -> dict[str, object]:
    times = [(answer.answered_at - answer.asked_at) * 1000 for answer in answers if answer.worker]
    p50, p99, most = (float(p) for p in np.percentile(times, (50, 99, 100))) if times else (None, None, None)
    return {
        "phase": phase.name,
        "seconds": phase.end - phase.start,
        "requests": len(answers),
        "unanswered": len(answers) - len(times),
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": most,
    }


def _first_answers(silences: Sequence[Silence]) -> str:
    if not silences:
        return "no partition moved"
    listed = ", ".join(f"{silence.seconds:.2f}" for silence in silences)
    return (
        f"{len(silences)} partitions moved; from the old owner's last answer to the new one's first {listed} s, "
        f"{max(s.seconds for s in silences):.2f} s at most"
    )
