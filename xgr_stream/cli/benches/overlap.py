"""`xgr-stream bench overlap`: warm requests while appends are running, through the thread that owns the device."""

from __future__ import annotations

import click

from xgr_stream.cli.benches.options import Output, Setting, output_options, setting_options
from xgr_stream.cli.benches.plots import Plot
from xgr_stream.cli.benches.report import Report, start
from xgr_stream.cli.benches.subject import Subject
from xgr_stream.cli.benches.traffic import Load, Loop, Traffic, measure_rates
from xgr_stream.types import MAX_BEAM_WIDTH

COLUMNS = {
    "run": "run",
    "requests": "requests",
    "events": "events",
    "seconds": "seconds",
    "p50_ms": "request P50 ms",
    "p99_ms": "request P99 ms",
    "events_per_s": "events/s",
    "users_a_batch": "users a batch",
    "behind": "users behind at the end",
}

OPEN_LOOPS = (
    Loop("requests alone", events=False),
    Loop("with appends"),
    Loop("with appends, one stream", streams=False),
)
CLOSED_LOOPS = (
    Loop("all requests", events=False),
    Loop("all appends", requests=False),
    Loop("both at once"),
    Loop("both at once, one stream", streams=False),
)


@click.command()
@setting_options
@click.option("--context", type=click.IntRange(1), default=1000, show_default=True, help="Tokens in each context.")
@click.option("--beam", type=click.IntRange(1, MAX_BEAM_WIDTH), default=256, show_default=True, help="Beam width.")
@click.option("--askers", type=click.IntRange(1), default=8, show_default=True, help="Users whose requests are timed.")
@click.option(
    "--appenders",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Other users, whose events are appended.",
)
@click.option(
    "--append-batch",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Users of the batches in a row, one event each, that give the peak rate of appends.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=3.0, show_default=True, help="Of each round of an open loop."
)
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True, help="Rounds of each loop.")
@click.option(
    "--load",
    type=click.FloatRange(0.01, 0.9),
    default=0.25,
    show_default=True,
    help="Share of the time that requests alone keep the device busy.",
)
@click.option(
    "--append-load",
    type=click.FloatRange(0.01, 1.0),
    default=0.5,
    show_default=True,
    help="Share of the peak rate at which events arrive.",
)
@output_options
def overlap(
    setting: Setting,
    context: int,
    beam: int,
    askers: int,
    appenders: int,
    append_batch: int,
    seconds: float,
    rounds: int,
    load: float,
    append_load: float,
    output: Output,
) -> None:
    """Time warm requests in an open loop, alone and while events are appended; then mixed throughput; each also with
    appends on the stream of requests, in turn with the others.

    Requests and events arrive by the clock, whether or not earlier ones are done; a request's time counts from when it
    was due. Then the same number of requests, one after the other, and of events is worked off as fast as it goes:
    requests alone, appends alone, both at once.
    """
    subject = Subject(setting)
    report = start("overlap", COLUMNS, subject.description(), output)
    plan = Load(
        context=context,
        beam=beam,
        askers=askers,
        appenders=appenders,
        append_batch=min(append_batch, appenders),
        seconds=seconds,
        rounds=rounds,
        load=load,
        append_load=append_load,
    )
    rates = measure_rates(subject, plan)
    report.notes.append(
        f"Peak of appends {rates.peak_events_per_s:,.0f} events/s; one warm request {rates.request_ms:.2f} ms; "
        f"requests arrive at {rates.requests_per_s:.0f}/s, events at {rates.events_per_s:,.0f}/s."
    )
    with Traffic(subject, plan, rates) as traffic:
        for row in traffic.open_loops(OPEN_LOOPS):
            report.add(row)
        for row in traffic.closed_loops(CLOSED_LOOPS):
            report.add(row)
    _conclude(report)
    report.finish(output, _plot(report))


def _conclude(report: Report) -> None:
    """The ratios that the bench is about."""
    rows = {str(row["run"]): row for row in report.rows}

    def figure(run: str, name: str) -> float:
        return float(str(rows[run][name]))

    alone = figure("requests alone", "p99_ms")
    slower = figure("with appends", "p99_ms") / alone
    slower_on_one = figure("with appends, one stream", "p99_ms") / alone
    apart = figure("all requests", "seconds") + figure("all appends", "seconds")
    mixed = figure("both at once", "seconds")
    on_one = figure("both at once, one stream", "seconds")
    report.more |= {
        "p99_ratio": slower,
        "one_stream_p99_ratio": slower_on_one,
        "mixed_over_one_stream": mixed / on_one,
        "mixed_over_apart": mixed / apart,
    }
    report.notes.append(f"P99 with appends is {slower:.2f} x what it is alone, on one stream {slower_on_one:.2f} x.")
    report.notes.append(
        f"Both at once take {mixed / on_one:.2f} x the time on one stream, {mixed / apart:.2f} x that of one after the "
        "other."
    )


def _plot(report: Report) -> Plot:
    rows = [row for row in report.rows if row.get("p50_ms") is not None]
    series = {name: [float(str(row[key])) for row in rows] for name, key in (("P50", "p50_ms"), ("P99", "p99_ms"))}
    return Plot("Warm requests", "milliseconds", [str(row["run"]) for row in rows], series)
