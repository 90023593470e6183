"""The planner: more load, more workers; what can't be had is said; the formula at points that are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from xgr_stream.cli.main import main
from xgr_stream.cli.planning import Load, Step, p99_ms, plan, steps_of
from xgr_stream.errors import ConfigError

STEPS = [Step(1, 4.0, 20.0, 0.1), Step(8, 10.0, 20.0, 0.1), Step(32, 30.0, 20.0, 0.1)]
ROWS = [
    {"context": 1000, "beam": 256, "batch": batch, "warm_ms": {"median": warm}, "cold_ms": warm + 5.0 * batch}
    for batch, warm in ((1, 4.0), (8, 10.0))
]


def test_an_idle_device_takes_the_step_alone() -> None:
    assert p99_ms(Step(1, 4.0), Load(1.0), 1) == (4.0, 0.004)


def test_the_formula_at_half_load() -> None:
    found, utilisation = p99_ms(Step(1, 5.0), Load(100.0), 1)
    assert utilisation == 0.5
    assert found == pytest.approx(5.0 + 5.0 * math.log(50))


def test_a_load_that_grows_for_ever_is_infinite() -> None:
    assert p99_ms(Step(1, 5.0), Load(200.0), 1)[0] == math.inf


@given(st.floats(1, 1e4), st.floats(1.1, 10), st.floats(0, 1))
def test_more_load_never_takes_fewer_workers(rate: float, factor: float, cold: float) -> None:
    few, many = (plan(STEPS, Load(rate * f, 0.0, cold), 3_000.0) for f in (1.0, factor))
    assert few.workers <= many.workers
    assert few.p99_ms <= 3_000
    assert few.workers == 1 or min(p99_ms(s, Load(rate, 0.0, cold), few.workers - 1)[0] for s in STEPS) > 3_000


def test_what_no_number_of_workers_gives_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"p99_ms must be at least 4\.0"):
        plan(STEPS, Load(10.0), 1.0)


def test_rows_of_a_bench() -> None:
    assert steps_of(ROWS) == [Step(1, 4.0, 5.0), Step(8, 10.0, 5.0)]
    with pytest.raises(ConfigError, match="one context"):
        steps_of([*ROWS, {**ROWS[0], "context": 5000}])
    with pytest.raises(ConfigError, match="warm_ms"):
        steps_of([{"batch": 1, "warm_ms": None}])


def run(path: Path, *options: str) -> dict[str, object]:
    result = CliRunner().invoke(main, ["plan", str(path), *options])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.output.splitlines()[-1])
    return found


def test_the_command_with_rates_and_with_a_trace(tmp_path: Path) -> None:
    costs, trace = tmp_path / "costs.json", tmp_path / "trace.parquet"
    costs.write_text(json.dumps({"rows": ROWS}))
    figures = run(costs, "--p99-ms", "60", "--requests-per-s", "2000", "--cold", "0.01", "--user-mib", "2")
    assert figures["workers"] == plan(steps_of(ROWS), Load(2000.0, 0.0, 0.01), 60.0).workers
    assert figures["cache_gib_per_worker"] == round(100_000 * 2 / int(str(figures["workers"])) / 1024, 3)
    kinds = ["request"] * 120 + ["event"] * 600
    columns = {"timestamp_ms": [60_000] * 720, "user_id": [f"u{i % 7}" for i in range(720)], "kind": kinds}
    parquet.write_table(pa.table(columns), trace)
    figures = run(costs, "--p99-ms", "60", "--trace", str(trace))
    assert (figures["requests_per_s"], figures["events_per_s"], figures["active_users"]) == (2.0, 10.0, 7)


def test_costs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text("[]")
    result = CliRunner().invoke(main, ["plan", str(tmp_path / "costs.json"), "--p99-ms", "9", "--requests-per-s", "1"])
    assert result.exit_code == 1
    assert "must be what `xgr-stream bench engine --json` writes" in result.output


def test_a_trace_that_is_no_parquet_file(tmp_path: Path) -> None:
    costs, trace = tmp_path / "costs.json", tmp_path / "trace.parquet"
    costs.write_text(json.dumps({"rows": ROWS}))
    trace.write_text("timestamp_ms,user_id,kind")
    result = CliRunner().invoke(main, ["plan", str(costs), "--p99-ms", "60", "--trace", str(trace)])
    assert result.exit_code == 1
    assert f"{trace} cannot be read as a Parquet file" in result.output
