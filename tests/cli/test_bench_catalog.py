"""`xgr-stream bench catalog` runs and writes its figures; speed itself is not a test's business."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from xgr_stream.cli.bench import bench


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--items", "500", "--excluded", "500"), "--excluded must be less than the 500 items, not 500"),
        (("--device", "nonsense"), "--device must be cpu, cuda or cuda:N (N from 0), not 'nonsense'"),
    ],
)
def test_wrong_options_are_named(wrong: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(bench, ["catalog", *wrong])
    assert (result.exit_code, message in result.output) == (1, True), result.output


def test_catalog(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    small = [
        "--items",
        "500",
        "--codes",
        "16",
        "--flips",
        "50",
        "--new",
        "300",
        "--repeats",
        "2",
        "--batch",
        "2",
        "--excluded",
        "5",
        "--excluded",
        "50",
    ]
    result = CliRunner().invoke(bench, ["catalog", *small, "--beam", "8", "--recommended", "100", "--json", str(path)])
    assert result.exit_code == 0, result.output
    figures = json.loads(path.read_text())
    rows = {row["what"]: row for row in figures["rows"]}
    among = rows["a batch of as many items as beams, behind updates and beside merges"]
    assert figures["notes"][0].startswith(f"{16 * among['times']} items recommended in {among['times']} batches, ")
    assert rows["a merge beside these"]["times"] == rows["its swap"]["times"] >= 3
    assert {"the same, 5 items excluded by each", "in a row, 50 items excluded by each"} <= rows.keys()
    assert rows["50 flips, until the device has them"]["times"] == 3
    assert rows["one new item, until it is recommended"]["times"] == 2
    assert rows["300 new ones taken in, 256 at a time"]["times"] == 2
    assert all(row["max_ms"] >= row["median_ms"] > 0 for row in rows.values())
