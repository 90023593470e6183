"""The other benches run on a CPU with a tiny model and write what they measured; speed itself is not tested."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from xgr_stream.cli.bench import BENCHES, bench
from xgr_stream.cli.benches.traffic import Loop, Traffic, _Passed
from xgr_stream.cli.main import main
from xgr_stream.engine import Engine
from xgr_stream.scheduler.promise import Promise

TINY = ("--shape", "tiny", "--device", "cpu")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(bench, arguments)
    assert result.exit_code == code, result.output
    return result


def figures(path: Path, *arguments: str) -> dict[str, Any]:
    run(*arguments, "--json", str(path / "figures.json"))
    read: dict[str, Any] = json.loads((path / "figures.json").read_text())
    return read


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_every_bench_has_help_and_is_listed(name: str) -> None:
    assert run(name, "--help").output.startswith(f"Usage: bench {name}")
    assert f"  {name} " in run("--help").output


def test_engine_table_holds_every_combination(tmp_path: Path) -> None:
    options = ("--context", "31", "--context", "47", "--batch", "2", "--beam", "4", "--beam", "8", "--repeats", "2")
    read = figures(tmp_path, "engine", *TINY, *options, "--pending", "6", "--plot", str(tmp_path / "plot.png"))
    assert [(row["context"], row["batch"], row["beam"]) for row in read["rows"]] == [
        (31, 2, 4),
        (31, 2, 8),
        (47, 2, 4),
        (47, 2, 8),
    ]
    for row in read["rows"]:
        assert row["invalid_items"] == 0
        assert 1 <= row["distinct_beams"] <= row["beam"]
        assert all(
            row[name]["samples"] == 2 and row[name]["median"] > 0 for name in ("warm_ms", "cold_ms", "pending_ms")
        )
        assert "floor_ms" not in row
        assert 0 < row["user_mib"] < row["cache_mib"]
    assert "floors" in read["notes"][0]
    assert read["setting"]["seed"] == "0"
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    of_rows = ("--context", "31", "--beam", "8", "--p99-ms", "60000", "--requests-per-s", "0.01", "--events-per-s", "1")
    planned = CliRunner().invoke(main, ["plan", str(tmp_path / "figures.json"), *of_rows])
    assert planned.output.startswith("1 worker, batches of up to 2 requests"), planned.output


def test_engine_times_requests_from_host_memory(tmp_path: Path) -> None:
    options = ("--context", "30", "--batch", "2", "--beam", "4", "--repeats", "2", "--pending", "3", "--host")
    (row,) = figures(tmp_path, "engine", *TINY, *options)["rows"]
    assert row["host_ms"]["samples"] == 2
    assert row["in_gb_per_s"] > 0
    assert row["out_gb_per_s"] > 0


def test_tiers_compares_policies_on_one_trace(tmp_path: Path) -> None:
    sizes = ("--device-gb", "3", "--host-gb", "6", "--users", "200", "--requests", "400", "--warm-up", "200")
    for more in ((), ("--sessions", "5")):
        rows = figures(tmp_path, "tiers", *sizes, *more)["rows"]
        for row in rows:
            assert row["warm_share"] + row["host_share"] + row["cold_share"] == pytest.approx(1.0)
            assert (row["host_share"] + row["ahead"] > 0) == row["policy"].endswith(", host")
        gpu_ms = {row["policy"]: row["gpu_ms"] for row in rows}
        assert gpu_ms["LRU, host"] < gpu_ms["LRU"]
        assert gpu_ms["rate x cost, host"] < gpu_ms["rate x cost"] < gpu_ms["LRU"]


def test_engine_times_one_kind_of_request_alone(tmp_path: Path) -> None:
    options = ("--context", "20", "--batch", "1", "--beam", "2", "--repeats", "1", "--only", "warm")
    (row,) = figures(tmp_path, "engine", *TINY, *options)["rows"]
    assert "warm_ms" in row
    assert "cold_ms" not in row


def test_engine_measures_a_checkpoint_of_whole_events(tmp_path: Path) -> None:
    from xgr_stream.cli.benches.against import random_checkpoint

    model = random_checkpoint(tmp_path / "model", seed=0)
    options = ("--model", str(model), "--device", "cpu", "--context", "20", "--batch", "1", "--beam", "2")
    (row,) = figures(tmp_path, "engine", *options, "--repeats", "1")["rows"]
    assert row["context"] == 18


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("engine", "--pending", "3"), "--pending: only with --shape or --context"),
        (("engine", "--codes", "12", "--fp8", "--k", "3"), "--codes, --fp8, --k: only with --shape or --context"),
        (("engine", *TINY, "--against", "transformers"), "--against: only of a checkpoint"),
        (("engine", *TINY, "--events", "3"), "--events: only of a checkpoint"),
        (("engine", *TINY, "--context", "30", "--pending", "2"), "whole events of 3 tokens"),
        (("engine", *TINY, "--context", "3", "--pending", "3"), "must hold more than 1 events"),
        (("engine", *TINY, "--fp8"), "fp8 needs CUDA"),
        (("appends",), "one of --shape and --model"),
        (("appends", *TINY, "--catalog", "."), "--catalog goes with --model"),
        (("appends", *TINY, "--tokens", "4"), "whole events of 3 tokens"),
        (("profile", *TINY), "needs CUDA"),
        (("profile", *TINY, "--trace", "trace.txt"), "must end in .json.gz"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: tuple[str, ...], reason: str) -> None:
    assert reason in run(*arguments, code=1).output


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from xgr_stream.cli.benches import plots

    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    result = run("appends", *TINY, "--plot", str(tmp_path / "plot.png"), code=1)
    assert "pip install 'xgr-stream[bench]'" in result.output


def test_appends_counts_events(tmp_path: Path) -> None:
    options = ("--prefix", "60", "--users", "3", "--tokens", "6", "--repeats", "4")
    (row,) = figures(tmp_path, "appends", *TINY, *options)["rows"]
    assert (row["prefix"], row["users"], row["tokens"]) == (60, 3, 6)
    assert row["events_per_s"] == pytest.approx(3 * 2 / row["in_a_row_ms"] * 1e3, abs=1)
    assert row["tokens_per_s"] == pytest.approx(3 * row["events_per_s"], abs=3)


def test_overlap_measures_latency_and_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--context", "12", "--beam", "4", "--askers", "2", "--appenders", "4", "--append-batch", "2")
    closed: list[tuple[bool, int, int, float]] = []
    sent, taken = 0, list[int]()
    run_closed, ask, send = Traffic._run_closed, Traffic._ask, Traffic._send

    def recorded(self: Traffic, *, requests: int, events: int) -> float:
        nonlocal sent
        sent = 0
        taken.clear()
        work = self._engine._work
        seconds = run_closed(self, requests=requests, events=events)
        closed.append((work.append_lane is not work.decode_lane, requests, events, seconds))
        assert len(taken) == requests
        assert all(so_far * requests >= number * events for number, so_far in enumerate(taken))  # both in step
        return seconds

    def counted_send(self: Traffic, number: int) -> None:
        nonlocal sent
        sent = number + 1
        send(self, number)

    def counted_ask(self: Traffic, number: int, done: Callable[[], object]) -> Promise:
        taken.append(sent - self._worker.queue_depths()["append"])
        return ask(self, number, done)

    monkeypatch.setattr(Traffic, "_run_closed", recorded)
    monkeypatch.setattr(Traffic, "_ask", counted_ask)
    monkeypatch.setattr(Traffic, "_send", counted_send)
    read = figures(tmp_path, "overlap", *TINY, *options, "--seconds", "0.1", "--rounds", "3")
    runs = {row["run"]: row for row in read["rows"]}
    both, on_one = "both at once", "both at once, one stream"
    open_loops = ["requests alone", "with appends", "with appends, one stream"]
    assert sorted(runs) == sorted([*open_loops, "all requests", "all appends", both, on_one])
    assert runs["requests alone"]["p99_ms"] >= runs["requests alone"]["p50_ms"] > 0
    assert runs["with appends, one stream"]["events"] == runs["with appends"]["events"] > 0
    assert runs["with appends, one stream"]["requests"] == runs["with appends"]["requests"] > 0
    assert runs[both]["requests"] == runs["all requests"]["requests"] > 0
    assert runs[both]["events"] == runs["all appends"]["events"] > 0
    assert [streams for streams, *_ in closed[:2]] == [False, True]  # these are not timed
    there = ["all requests", "all appends", both, on_one]
    in_turn = [*there, *there[::-1], *there]
    assert [(streams, bool(requests), bool(events)) for streams, requests, events, _ in closed[2:]] == [
        (name != on_one, name != "all appends", name != "all requests") for name in in_turn
    ]
    for name in there:
        loops = [each for each, loop in zip(closed[2:], in_turn, strict=True) if loop == name]
        summed = [sum(column) for column in list(zip(*loops, strict=True))[1:]]
        assert [runs[name][column] for column in ("requests", "events", "seconds")] == summed
    assert read["mixed_over_one_stream"] == runs[both]["seconds"] / runs[on_one]["seconds"]
    assert read["mixed_over_apart"] > 0
    for run in ("with appends", "all appends", both, on_one):
        assert 1 <= runs[run]["users_a_batch"] <= 4
    assert "users_a_batch" not in runs["all requests"]
    assert ["behind" in runs[run] for run in (*open_loops, *there)] == [False, True, True, *[False] * 4]
    alone, beside = (runs[name]["p99_ms"] for name in ("requests alone", "with appends, one stream"))
    assert read["one_stream_p99_ratio"] == beside / alone


def test_a_row_of_overlap_has_what_was_appended() -> None:
    passed = _Passed(Loop("both"), requests=7, events=90, seconds=2.0, appended=np.array([600.0, 100.0, 8.0]))
    row = passed.row(event_tokens=3)
    assert row == {
        "run": "both",
        "requests": 7,
        "events": 90,
        "seconds": 2.0,
        "events_per_s": 100,
        "users_a_batch": 12.5,
    }


def test_overlap_says_when_events_were_not_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--context", "12", "--beam", "4", "--askers", "2", "--appenders", "4", "--append-batch", "2")
    rewind = Traffic._rewind

    def once(self: Traffic) -> None:
        rewind(self)
        self._rewound = True
        monkeypatch.setattr(Traffic, "_rewind", lambda self: None)

    monkeypatch.setattr(Traffic, "_rewind", once)
    result = run("overlap", *TINY, *options, "--seconds", "0.1", "--rounds", "1", code=1)
    assert "must be appended, not" in result.output + str(result.exception)


def test_ablation_compares_answers(tmp_path: Path) -> None:
    options = ("--context", "30", "--batch", "2", "--beam", "8", "--repeats", "1")
    rows = figures(tmp_path, "ablation", *TINY, *options)["rows"]
    assert rows[0]["variant"] == "everything on"
    assert len(rows) == 6
    assert all(row["equal"] and row["same_items"] == 1 for row in rows)


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_directory_that_is_not_there_is_said_before_the_work(option: str, tmp_path: Path) -> None:
    result = run("ablation", *TINY, option, str(tmp_path / "none" / "figures.png"), code=1)
    assert "must be in a directory that is there" in result.output + str(result.exception)
    assert "everything on" not in result.output


def test_a_file_that_can_t_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_text", full)
    options = ("--context", "30", "--batch", "1", "--beam", "4", "--repeats", "1", "--json", str(tmp_path / "a.json"))
    assert f"{tmp_path / 'a.json'} cannot be written: [Errno 28]" in run("ablation", *TINY, *options, code=1).output


def test_seeds_below_0_are_refused() -> None:
    assert "Invalid value for '--seed'" in run("engine", *TINY, "--seed", "-1", code=2).output


def test_only_is_alone() -> None:
    result = run("engine", *TINY, "--only", "cold", "--pending", "3", code=1)
    assert "leave out --pending and --host" in result.output + str(result.exception)


def test_an_ablation_s_requests_must_be_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "warm", lambda *_: None)
    options = ("--context", "30", "--batch", "2", "--beam", "8", "--repeats", "1")
    result = run("ablation", *TINY, *options, code=1)
    assert "requests must be warm, not cold" in result.output + str(result.exception)
