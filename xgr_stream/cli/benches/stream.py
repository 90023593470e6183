"""`xgr-stream bench stream`: events and requests by the clock, latency against load until it breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click

from xgr_stream.cli.benches.arrivals import Mix, Schedule, loop, schedule
from xgr_stream.cli.benches.options import Output, Setting, output_options, setting_options
from xgr_stream.cli.benches.plots import Curves
from xgr_stream.cli.benches.report import Report, start
from xgr_stream.cli.benches.stream_subject import Run, Served, in_memory
from xgr_stream.errors import ConfigError
from xgr_stream.testing.paced_engine import StepTimes
from xgr_stream.types import MAX_BEAM_WIDTH

COLUMNS = {
    "requests_per_s": "requests/s",
    "events_per_s": "events/s",
    "goodput": "in time/s",
    "p50_ms": "P50 ms",
    "p99_ms": "P99 ms",
    "ready_p99_ms": "P99 ms, not cold",
    "refused": "refused",
    "refused_p99_ms": "refused after ms (P99)",
    "late": "late",
    "unanswered": "unanswered",
    "warm_p99_ms": "event→warm P99 ms",
    "wait_ms": "wait",
    "append_ms": "append",
    "decode_ms": "decode",
    "stream_ms": "stream",
    "users_warm": "users warm",
    "prefix_gib": "GiB of prefixes",
    "processed_per_s": "events done/s",
    "behind": "events behind",
    "cpu": "worker CPU",
    "event_us": "CPU µs an event",
    "request_us": "CPU µs a request",
}
STEP = 1.5
MOST_STEPS = 24
GOOD = 0.9
"""Share of the requests that must be answered in time before a load counts as one that was kept up with."""
WARM_UP_S = 3.0


@dataclass(frozen=True, slots=True)
class Loads:
    """Which loads are tried, requests per second."""

    rates: tuple[float, ...]
    concurrencies: tuple[int, ...]
    """Instead of rates: so many requests at a time."""
    first: float
    overload: float | None
    seconds: float
    p99_ms: float
    costs: bool


@click.command()
@setting_options
@click.option(
    "--engine",
    "engine_kind",
    type=click.Choice(["null", "paced"]),
    help="An engine without a model: at once, or as --paced says.  [default: null without --shape and --model]",
)
@click.option(
    "--paced",
    nargs=3,
    type=float,
    default=(4.0, 4.0, 4.0),
    show_default=True,
    help="Milliseconds of a step, microseconds of a beam, microseconds of an appended token, with --engine paced.",
)
@click.option("--in-process", is_flag=True, help="No broker: the load meets the processor in this process.")
@click.option("--broker", help="HOST:PORT of a broker to use.  [default: an embedded one]")
@click.option(
    "--kafka-home",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Start Apache Kafka from this directory, whose bin/kafka-node runs a node.",
)
@click.option("--driver", type=click.Choice(["kafka", "faust"]), default="kafka", show_default=True)
@click.option("--echo", is_flag=True, help="Also a bare Faust agent that sends each request back, at the same loads.")
@click.option(
    "--costs", is_flag=True, help="Each load also with its events alone and its requests alone: what either takes."
)
@click.option("--core", type=click.IntRange(0), help="Hold the worker process to this core.")
@click.option("--rate", "rates", type=float, multiple=True, help="Requests/s. May be given several times.")
@click.option(
    "--from", "first", type=float, default=50.0, show_default=True, help="First load, if no --rate; then 1.5 × more."
)
@click.option(
    "--concurrency",
    "concurrencies",
    type=click.IntRange(1),
    multiple=True,
    help="So many requests at a time, the next one when one is answered, instead of --rate; with --in-process. May be "
    "given several times.",
)
@click.option("--overload", type=float, help="A last run at so many times the best load.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Of each load.")
@click.option("--events-per-request", type=float, default=10.0, show_default=True)
@click.option("--users", type=click.IntRange(1), default=200, show_default=True)
@click.option("--zipf", type=float, default=1.0, show_default=True, help="Exponent of the users' frequencies.")
@click.option("--cold", type=float, default=0.0, show_default=True, help="Share of the requests without a prefix.")
@click.option("--context", type=click.IntRange(1), default=1000, show_default=True, help="Tokens of each user.")
@click.option("--beam", type=click.IntRange(1, MAX_BEAM_WIDTH), default=64, show_default=True)
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items that a request asks for.")
@click.option("--timeout-ms", type=click.IntRange(1), default=1000, show_default=True, help="Deadline of a request.")
@click.option("--p99-ms", type=float, help="P99 beyond which a load is too much.  [default: --timeout-ms]")
@output_options
def stream(
    setting: Setting,
    engine_kind: str | None,
    paced: tuple[float, float, float],
    in_process: bool,
    broker: str | None,
    kafka_home: Path | None,
    driver: str,
    echo: bool,
    costs: bool,
    core: int | None,
    rates: tuple[float, ...],
    concurrencies: tuple[int, ...],
    first: float,
    overload: float | None,
    seconds: float,
    events_per_request: float,
    users: int,
    zipf: float,
    cold: float,
    context: int,
    beam: int,
    k: int,
    timeout_ms: int,
    p99_ms: float | None,
    output: Output,
) -> None:
    """Open-loop load: Poisson arrivals of events and requests, users by Zipf's law, latency from when a request was
    due to its consumed response. Loads rise until one is too much: its P99 beyond --p99-ms, or less than 90 % of its
    requests answered in time. With --concurrency a closed loop: a request and its events for each that is answered."""
    if in_process and (broker or kafka_home or echo or costs):
        raise ConfigError("--in-process has no broker: leave out --broker, --kafka-home, --echo and --costs")
    if concurrencies and (rates or overload or not in_process):
        raise ConfigError("--concurrency is for loads --in-process: leave out --rate and --overload")
    if engine_kind is not None and (setting.shape or setting.model):
        raise ConfigError("--engine is for runs without a model: leave out --shape and --model")
    mix = Mix(users, zipf, events_per_request, cold, setting.seed)
    serving = Served(
        setting=setting,
        engine=engine_kind or (None if setting.shape or setting.model else "null"),
        times=StepTimes(*paced),
        mix=mix,
        context=context,
        beam=beam,
        k=k,
        timeout_ms=timeout_ms,
        driver=driver,
        core=core,
        concurrency=max(concurrencies, default=0),
    )
    loads = Loads(rates, concurrencies, first, overload, seconds, p99_ms or timeout_ms, costs)
    if in_process:
        with in_memory(serving) as (description, runs):
            _measure(serving, loads, runs, description, output)
        return
    from xgr_stream.cli.benches.stream_kafka import brokered

    with brokered(serving, broker, kafka_home, echo=echo) as (description, runs):
        _measure(serving, loads, runs, description, output)


def _measure(
    serving: Served, loads: Loads, runs: Mapping[str, Run], description: Mapping[str, object], output: Output
) -> None:
    """The rows of all loads, then what they come to."""
    mix = serving.mix
    setting = {
        **description,
        "mix": f"{mix.events_per_request:g} events a request, {mix.users} users by Zipf's law (exponent {mix.zipf:g}), "
        f"{mix.cold_share:.0%} of the requests cold",
        "requests": f"k {serving.k}, beam {serving.beam}, {serving.timeout_ms} ms to be answered in",
        "load": f"{'closed loop' if loads.concurrencies else 'open loop, Poisson arrivals'}, {loads.seconds:g} s each",
        "seed": mix.seed,
    }
    if loads.concurrencies:
        report = start("stream", {"offered": "at a time", **COLUMNS}, setting, output)
        _measure_loops(report, mix, loads, runs["xgr"])
        report.finish(output, _curves(report, loads))
        return
    report = start("stream", {"run": "run", **COLUMNS} if len(runs) > 1 or loads.costs else COLUMNS, setting, output)
    warm_up = schedule(mix, loads.rates[0] if loads.rates else loads.first, WARM_UP_S)
    for run in runs.values():
        run(warm_up, WARM_UP_S)
    best: dict[str, object] = {}
    for rate in _rates(loads):
        kept_up = False
        if loads.costs:
            _add_costs(report, schedule(mix, rate, loads.seconds), loads, rate, runs["xgr"])
        for name, run in runs.items():
            row = {"run": name, "offered": rate, **run(schedule(mix, rate, loads.seconds), loads.seconds)}
            report.add(row)
            if name == "xgr":
                kept_up = _kept_up(row, rate, loads)
                if float(str(row["goodput"])) > float(str(best.get("goodput", 0.0))):
                    best = row
        if not kept_up and not loads.rates:
            break
    if loads.overload is not None and best:
        rate = loads.overload * float(str(best["goodput"]))
        row = {"run": "xgr", "offered": rate, **runs["xgr"](schedule(mix, rate, loads.seconds), loads.seconds)}
        report.add(row)
        _add_overload(report, row, best, serving, loads.overload)
    _add_notes(report, loads)
    report.finish(output, _curves(report, loads))


def _measure_loops(report: Report, mix: Mix, loads: Loads, run: Run) -> None:
    run(loop(mix, max(loads.concurrencies)), WARM_UP_S)
    for concurrency in loads.concurrencies:
        report.add({"run": "xgr", "offered": concurrency, **run(loop(mix, concurrency), loads.seconds)})
    within = [row for row in report.rows if _figure(row["p99_ms"]) and float(str(row["p99_ms"])) <= loads.p99_ms]
    if within:
        most = max(within, key=lambda row: float(str(row["goodput"])))
        report.notes.append(
            f"most within a P99 of {loads.p99_ms:g} ms: {most['goodput']:.1f} requests/s, {most['offered']} at a time"
        )


def _add_costs(report: Report, plan: Schedule, loads: Loads, rate: float, run: Run) -> None:
    """The load's events alone, then its requests alone: CPU time is repeatable where rates and latencies are not."""
    asked = replace(plan, events_at=plan.events_at[:0], event_users=plan.event_users[:0])
    done = replace(plan, requests_at=plan.requests_at[:0], request_users=plan.request_users[:0], cold=plan.cold[:0])
    cores = 0.0
    for name, part, count in (("events alone", done, plan.events_at), ("requests alone", asked, plan.requests_at)):
        row = {"run": name, "offered": rate, **run(part, loads.seconds)}
        report.add(row)
        took_us = row.get("event_us", row.get("request_us"))
        cores += float(str(took_us)) * len(count) / loads.seconds / 1e6 if took_us is not None else 0.0
    report.notes.append(
        f"at {rate:g} requests/s: events and requests, each alone, take {cores:.0%} of a core's time in the worker"
    )


def _rates(loads: Loads) -> Iterator[float]:
    if loads.rates:
        yield from loads.rates
        return
    for step in range(MOST_STEPS):
        yield loads.first * STEP**step


def _kept_up(row: Mapping[str, object], rate: float, loads: Loads) -> bool:
    p99_ms, goodput = row["p99_ms"], row["goodput"]
    return isinstance(p99_ms, float) and p99_ms <= loads.p99_ms and float(str(goodput)) >= GOOD * rate


def _add_overload(
    report: Report, row: Mapping[str, object], best: Mapping[str, object], serving: Served, times: float
) -> None:
    share = float(str(row["goodput"])) / float(str(best["goodput"]))
    report.more["overload"] = {"times": times, "goodput_of_peak": share}
    p99_ms, refused_ms = row["p99_ms"], row.get("refused_p99_ms")
    said = f"{refused_ms:.1f} ms" if isinstance(refused_ms, float) else "none refused"
    p99 = f"{p99_ms:.0f}" if isinstance(p99_ms, float) else "-"
    report.notes.append(
        f"at {times:g} x the best load: {share:.0%} of its goodput, accepted requests P99 {p99} ms of "
        f"{serving.timeout_ms}, {row['late']} late, refused ones told after (P99) {said}"
    )


def _add_notes(report: Report, loads: Loads) -> None:
    kept = [row for row in report.rows if row["run"] == "xgr" and _kept_up(row, float(str(row["offered"])), loads)]
    if kept:
        most = max(kept, key=lambda row: float(str(row["offered"])))
        report.notes.append(
            f"kept up with: {most['offered']:.0f} requests/s and {most['events_per_s']:.0f} events/s "
            f"(P99 at most {loads.p99_ms:g} ms, {GOOD:.0%} in time)"
        )
    echoes = {row["offered"]: row["p50_ms"] for row in report.rows if row["run"] == "echo"}
    for row in report.rows:
        ours, echo = row["p50_ms"], echoes.get(row["offered"])
        if row["run"] == "xgr" and isinstance(ours, float) and isinstance(echo, float):
            report.notes.append(f"P50 at {row['offered']:g} requests/s: {ours / echo:.2f} x the bare Faust echo's")


def _curves(report: Report, loads: Loads) -> Curves:
    rows = [row for row in report.rows if row["run"] == "xgr"]
    names = {
        "p50_ms": "request P50",
        "p99_ms": "request P99",
        "warm_p99_ms": "event→warm P99",
        "wait_p99_ms": "wait P99",
        "append_p99_ms": "append P99",
        "decode_p99_ms": "decode P99",
        "stream_p99_ms": "stream P99",
    }
    if loads.concurrencies:
        names["goodput"] = "requests/s in time"
    series = {label: [_figure(row.get(key)) for row in rows] for key, label in names.items()}
    return Curves(
        title="Latency against load",
        across="requests at a time" if loads.concurrencies else "requests/s offered",
        up="ms, and requests/s" if loads.concurrencies else "ms",
        xs=[float(str(row["offered"])) for row in rows],
        series={label: values for label, values in series.items() if any(value for value in values)},
        limits={f"P99 limit, {loads.p99_ms:g} ms": loads.p99_ms},
    )


def _figure(value: object) -> float | None:
    return value if isinstance(value, float) and value > 0 else None
