"""The planner: loads that were measured, more load, what can't be had; the command's errors; how memory is split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner

from xgr_stream.cli.main import main
from xgr_stream.cli.planning import Costs, Load, costs_of, plan, simulated
from xgr_stream.errors import ConfigError

CHUNK = 384
STEPS = {
    (1000, 1): (4.51, 6.51, 10.34),
    (1000, 8): (22.70, 24.75, 63.25),
    (5000, 1): (5.52, 7.17, 35.90),
    (5000, 8): (30.62, 33.64, 272.20),
}
"""(context, batch) → warm, with its event, cold: docs/performance.md, "Requests", of an H200."""
ROWS: list[dict[str, Any]] = [
    {
        "context": context,
        "batch": batch,
        "beam": 256,
        "warm_ms": {"median": warm, "q1": warm, "q3": warm, "p99": warm, "samples": 40},
        "pending_ms": {"median": pending},
        "cold_ms": {"median": cold},
        "peak_mib": 12_000,
        "cache_mib": 6_000.0,
        "user_mib": 550.0,
    }
    for (context, batch), (warm, pending, cold) in STEPS.items()
]
OF_5000 = [row for row in ROWS if row["context"] == 5000]


def without(name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != name} for row in OF_5000]


@pytest.mark.parametrize(
    ("context", "load", "p50_ms", "p99_ms", "ready_p99_ms"),
    [
        (5000, Load(52, 506, 0.05), 8.4, 87, 20),
        (5000, Load(86, 849, 0.05), 12.7, 170, 32),
        (5000, Load(30), None, 13.8, 13.8),
        (1000, Load(55), 6.15, 12.58, 12.58),
        (5000, Load(45), 7.01, 14.56, 14.56),
    ],
)
def test_loads_that_were_measured(
    context: int, load: Load, p50_ms: float | None, p99_ms: float, ready_p99_ms: float
) -> None:
    costs = costs_of([row for row in ROWS if row["context"] == context], load, CHUNK)
    found = simulated(costs, load, 1, 8)
    assert p50_ms is None or found.p50_ms == pytest.approx(p50_ms, rel=0.3)
    assert found.p99_ms == pytest.approx(p99_ms, rel=0.15)
    assert found.ready_p99_ms == pytest.approx(ready_p99_ms, rel=0.25)


def test_the_card_is_busy_where_a_closed_loop_found_it_so() -> None:
    for requests_per_s, fits in ((140, True), (160, False)):
        load = Load(requests_per_s, 10 * requests_per_s, 0.05)
        latency = simulated(costs_of(OF_5000, load, CHUNK), load, 1, 8)
        assert (latency.utilisation < 1) == fits
        assert (latency.p99_ms < 1000) == fits


def test_an_idle_device_takes_the_step_alone() -> None:
    latency = simulated(Costs((4.0,)), Load(0.01), 1, 1)
    assert (latency.p50_ms, latency.p99_ms) == pytest.approx((4.0, 4.0))


def test_one_server_with_equal_steps() -> None:
    """M/D/1 at half load: the mean wait is half a step (Pollaczek and Khinchine), the device is busy half the time."""
    latency = simulated(Costs((5.0,)), Load(100.0), 1, 1)
    assert latency.utilisation == pytest.approx(0.5, rel=0.02)
    assert latency.p50_ms == pytest.approx(5.0, rel=0.02)  # half of them don't wait
    assert 5.0 + 2 * 5.0 < latency.p99_ms < 5.0 + 4 * 5.0


def test_a_warm_request_waits_for_one_chunk_of_a_prefill() -> None:
    """Of 10 with 20 ms each; all of it where prefills are whole."""
    load = Load(1.0, cold=0.25)  # so seldom that hardly a prefill is overdue
    chunked, whole = (simulated(Costs((1.0,), prefill_ms=200.0, chunks=n), load, 1, 1) for n in (10, 1))
    assert chunked.ready_p99_ms < 22
    assert whole.ready_p99_ms > 130


def test_more_events_of_a_user_cost_no_more() -> None:
    few, many = (costs_of(OF_5000, Load(86, events), CHUNK) for events in (86, 8_600))
    assert few.batch_ms == many.batch_ms == pytest.approx(costs_of(OF_5000, Load(86, 860), CHUNK).batch_ms)
    assert few.batch_ms[0] == 7.17
    assert few.batch_ms[-1] == 33.64
    assert costs_of(OF_5000, Load(86, 43), CHUNK).batch_ms[0] == pytest.approx((5.52 + 7.17) / 2)


@pytest.mark.parametrize("cold", [0.0, 0.05, 1.0])
def test_more_load_takes_more_workers(cold: float) -> None:
    workers = []
    for requests_per_s in (10, 86, 258, 5_000):
        load = Load(requests_per_s, 10 * requests_per_s, cold)
        costs = costs_of(OF_5000, load, CHUNK)
        found = plan(costs, load, 200.0)
        assert found.latency.p99_ms <= 200
        if found.workers > 1:
            assert simulated(costs, load, found.workers - 1, 8).p99_ms > 200
        workers.append(found.workers)
    assert workers == sorted(workers)
    assert workers[-1] > 20


def test_what_no_number_of_workers_gives_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"p99_ms must be at least 5\.5, which a request takes on an idle device"):
        plan(costs_of(OF_5000, Load(10.0), CHUNK), Load(10.0), 1.0)
    with pytest.raises(ConfigError, match="more than 10,000 workers answer within 9 ms"):
        plan(costs_of(OF_5000, Load(1e8), CHUNK), Load(1e8), 9.0)
    with pytest.raises(ConfigError, match="more than the hosts of 10,000 workers take in"):
        plan(costs_of(OF_5000, Load(1.0, 1e9), CHUNK), Load(1.0, 1e9), 200.0)


def test_hosts_take_in_events_too() -> None:
    load = Load(10.0, 200_000.0)
    assert plan(costs_of(OF_5000, load, CHUNK), load, 200.0).workers == 7


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS, r"one \(context, beam\), not of \(1000, 256\), \(5000, 256\): choose with --context"),
        (without("pending_ms"), r"pending_ms, and that of batch 1 has none: run .* with --pending N"),
        (without("cold_ms"), r"cold_ms, and that of batch 1 has none: run .* without --only warm"),
        (without("warm_ms"), r"warm_ms, and that of batch 1 has none: run .* without --only cold"),
        (without("context"), r"context of each row must be an integer.*--shape or --context"),
        ([{**OF_5000[0], "warm_ms": [4.0, 3.0, 5.0]}], r"warm_ms of each row must be milliseconds.*not \[4\.0"),
        ([{**OF_5000[0], "batch": 0}], "batch of each row must be an integer of at least 1, not 0"),
    ],
)
def test_rows_that_say_too_little(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        costs_of(rows, Load(10.0, 100.0, 0.05), CHUNK)


# The command


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"setting": {"device": "NVIDIA H200", "cuda": "13.0"}, "rows": ROWS}))
    return path


def output(path: Path, *options: str) -> str:
    result = CliRunner().invoke(main, ["plan", str(path), "--context", "5000", *options])
    assert result.exit_code == 0, result.output
    return result.output


def figures(path: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output(path, *options).splitlines()[-1])
    return found


def refusal(path: Path, *options: str) -> str:
    result = CliRunner().invoke(main, ["plan", str(path), *options])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit), "a traceback"
    return " ".join(result.output.split())


def test_one_card_does_what_one_card_did(costs: Path) -> None:
    load = ("--p99-ms", "200", "--requests-per-s", "86", "--events-per-s", "849", "--users", "200")
    found = figures(costs, *load)
    assert (found["workers"], found["batch"], found["max_batch_rows"]) == (1, 8, 2048)
    assert 140 < found["p99_ms"] < 200
    three = figures(costs, "--p99-ms", "200", "--requests-per-s", "258", "--events-per-s", "2547", "--users", "600")
    assert three["workers"] == 3


def test_memory_of_a_worker(costs: Path) -> None:
    load = ("--p99-ms", "200", "--requests-per-s", "86", "--users", "300")
    text = output(costs, *load, "--device-gib", "139", "--host-cache-mib", "22000")
    assert "139 GiB: 5.9 weights, catalog and work space, 8.7 kept free, 124.5 KV cache (--cache-mib 127440)" in text
    assert "of its 300 active users, 550.00 MiB each: 231 warm on the device, 40 in 22,000 MiB of host memory" in text
    assert "29 cold" in text
    assert "`xgr-stream bench tiers` tells it" in text
    assert "host: 0.00 GiB of histories, 21.5 GiB of prefixes" in text
    found = json.loads(text.splitlines()[-1])
    assert found["model_mib"] + found["free_mib"] + found["cache_mib"] == 139 * 1024
    assert found["users_warm"] + found["users_host"] + found["users_cold"] == 300
    assert found["cache_gib_per_worker"] == round(300 * 550 / 1024, 3)
    smaller = figures(costs, *load, "--device-gib", "139", "--user-mib", "275")
    assert (smaller["users_warm"], smaller["users_cold"]) == (300, 0)
    assert "split with --device-gib" in output(costs, *load)
    assert "device_gib must hold weights" in refusal(costs, "--context", "5000", *load, "--device-gib", "6")


def test_memory_that_a_cpu_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    rows = [{key: row[key] for key in row if key not in ("peak_mib", "cache_mib", "user_mib")} for row in OF_5000]
    path.write_text(json.dumps({"setting": {"device": "x86_64"}, "rows": rows}))
    load = ("--p99-ms", "2000", "--requests-per-s", "10")
    assert "not known without --user-mib" in output(path, *load)
    message = refusal(path, *load, "--device-gib", "9", "--user-mib", "2")
    assert message.startswith("Error: config: peak_mib of each row must be a number above 0, not None")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0"])
@pytest.mark.parametrize("option", ["--p99-ms", "--requests-per-s", "--device-gib"])
def test_figures_that_are_none(costs: Path, option: str, value: str) -> None:
    assert f"Invalid value for '{option}': {value}" in refusal(costs, "--p99-ms", "9", option, value)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{}", '{"rows": 3}', '{"rows": [3]}', "not json", '{"rows": [], "setting": 3}'),
        pytest.param("[" * 100_000, id="nested"),
    ],
)
def test_costs_that_are_none(costs: Path, text: str) -> None:
    costs.write_text(text)
    message = refusal(costs, "--p99-ms", "9", "--requests-per-s", "1")
    assert "must be what `xgr-stream bench engine --json` writes" in message


def test_a_context_that_was_not_measured(costs: Path) -> None:
    message = refusal(costs, "--p99-ms", "9", "--requests-per-s", "1", "--context", "3")
    assert "(context, beam) of those it has: (1000, 256), (5000, 256)" in message


# Traces

TRACE: Mapping[str, list[Any]] = {
    # The busiest minute lies across two minutes of the clock.
    "timestamp_ms": [0, *[90_000] * 60, *[149_999] * 60, 200_000, *[100_000] * 600],
    "user_id": ["first", *(f"u{i % 7}" for i in range(120)), "last", *["u0"] * 600],
    "kind": ["event", *["request"] * 120, "request", *["event"] * 600],
}


def write_trace(tmp_path: Path, **columns: Any) -> Path:
    path = tmp_path / "trace.parquet"
    parquet.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), path)
    return path


@pytest.mark.parametrize("categories", [False, True])
def test_the_busiest_minute_of_a_trace(costs: Path, tmp_path: Path, categories: bool) -> None:
    kinds = pa.array(TRACE["kind"])
    trace = write_trace(tmp_path, **{**TRACE, "kind": kinds.dictionary_encode() if categories else kinds})
    found = figures(costs, "--p99-ms", "60", "--trace", str(trace))
    assert (found["requests_per_s"], found["events_per_s"], found["active_users"]) == (2.0, 10.0, 9)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"timestamp_ms": ["0"] * 722}, "timestamp_ms of {} must be integers, not string, as '0'"),
        ({"timestamp_ms": [0.5] * 722}, "timestamp_ms of {} must be integers, not double, as 0.5"),
        ({"timestamp_ms": [0, None, *[9] * 720]}, "timestamp_ms of {} must be integers, not None (row 1)"),
        ({"user_id": [["a"]] * 722}, "user_id of {} must be strings or integers, not list<"),
        ({"user_id": ["a", *[None] * 721]}, "user_id of {} must be strings or integers, not None (row 1)"),
        ({"kind": [*["request"] * 721, None]}, "kind of {} must be `event` or `request`, not None (row 721)"),
        ({"kind": ["event", *["click"] * 721]}, "kind of {} must be `event` or `request`, not 'click' (row 1)"),
        ({"kind": [1] * 722}, "kind of {} must be `event` or `request`, not int64, as 1"),
        ({"kind": ["event"] * 722}, "kind of {} must be `request` in some rows, not `event` in all 722"),
        ({"kind": None}, "{} must have a column kind of `event` or `request`; it has timestamp_ms, user_id"),
        ({"timestamp_ms": [7] * 722}, "timestamp_ms of {} must span at least a minute of milliseconds, not 0 s"),
    ],
)  # fmt: skip
def test_a_trace_with_a_column_that_is_wrong(
    costs: Path, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    trace = write_trace(tmp_path, **{**TRACE, **columns})
    assert message.format(trace) in refusal(costs, "--context", "5000", "--p99-ms", "60", "--trace", str(trace))


def test_a_trace_without_rows(costs: Path, tmp_path: Path) -> None:
    types = {"timestamp_ms": pa.int64(), "user_id": pa.string(), "kind": pa.string()}
    trace = write_trace(tmp_path, **{name: pa.array([], kind) for name, kind in types.items()})
    message = refusal(costs, "--p99-ms", "60", "--trace", str(trace))
    assert f"timestamp_ms of {trace} must span at least a minute of milliseconds, not no row" in message


def test_a_trace_that_is_no_parquet_file(costs: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    for content in ("timestamp_ms,user_id,kind", ""):
        trace.write_text(content)
        message = refusal(costs, "--p99-ms", "60", "--trace", str(trace))
        assert f"{trace} cannot be read as a Parquet file" in message


@pytest.mark.parametrize("option", ["--requests-per-s", "--events-per-s", "--users"])
def test_a_trace_and_rates_are_not_both_taken(costs: Path, tmp_path: Path, option: str) -> None:
    trace = write_trace(tmp_path, **TRACE)
    message = refusal(costs, "--context", "5000", "--p99-ms", "60", "--trace", str(trace), option, "5")
    assert f"--trace has the load: leave out {option}" in message


def test_a_load_must_be_given(costs: Path) -> None:
    assert "--trace or --requests-per-s" in refusal(costs, "--p99-ms", "60", "--events-per-s", "5")
