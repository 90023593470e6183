"""`xgr-stream bench engine` runs, compares and writes its figures; speed itself is not a test's business."""

import json

import pytest
from click.testing import CliRunner

from xgr_stream.cli.bench import bench
from xgr_stream.cli.benches.against import WARM_UP, EngineBench, Workload, random_checkpoint
from xgr_stream.types import CacheState


def test_engine_against_transformers(tmp_path):
    path = tmp_path / "figures.json"
    small = [
        "--events",
        "5",
        "--beam",
        "4",
        "--batch",
        "1",
        "--batch",
        "2",
        "--repeats",
        "2",
        "--baseline-repeats",
        "1",
    ]
    result = CliRunner().invoke(bench, ["engine", "--against", "transformers", *small, "--json", str(path)])
    assert result.exit_code == 0, result.output
    assert "same beams for 2 of 2 requests" in result.output
    rows = json.loads(path.read_text())["rows"]
    assert [row["batch"] for row in rows] == [1, 2]
    assert all(row["differing"] == 0 and row["baseline_ms"][0] > 0 for row in rows)


@pytest.mark.parametrize("option", ["--beam", "--events", "--batch", "--repeats", "--baseline-repeats", "--threads"])
def test_nothing_to_measure_is_refused_by_name(option):
    result = CliRunner().invoke(bench, ["engine", option, "0"])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


def test_engine_alone():
    result = CliRunner().invoke(bench, ["engine", "--events", "5", "--beam", "4", "--batch", "1", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    assert "faster than cold" in result.output
    assert "transformers" not in result.output


def test_warm_and_cold_are_timed_in_turn(tmp_path, monkeypatch):
    """On a machine whose speed changes, runs of one kind after those of the other would not give a ratio."""
    order = []
    answer = EngineBench._answer
    monkeypatch.setattr(
        EngineBench, "_answer", lambda self, users, state, k=10: order.append(state) or answer(self, users, state, k)
    )
    path = random_checkpoint(tmp_path, 0)
    workload = Workload(path, path / "catalog.parquet", 4, 5, 3, 1, 1, 0, "cpu", None)
    figures = EngineBench(workload).measure(1, against_transformers=False)
    assert order == [CacheState.COLD, CacheState.WARM] * (WARM_UP + 3)
    assert figures.warm.fastest <= figures.warm.median <= figures.warm.slowest
