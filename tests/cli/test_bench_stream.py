"""`xgr-stream bench stream`: it runs, counts and draws; speed itself is not a test's business."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from click.testing import CliRunner

from xgr_stream.cli.bench import bench
from xgr_stream.cli.benches import stream
from xgr_stream.cli.benches.arrivals import Mix, schedule
from xgr_stream.cli.benches.latencies import Outcomes

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
MIX = Mix(users=50, zipf=1.0, events_per_request=4.0, cold_share=0.25, seed=3)


@pytest.fixture(autouse=True)
def _warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fraction of what figures worth reporting need before they are taken."""
    monkeypatch.setattr(stream, "WARM_UP_S", 0.5)


def run(*options: str) -> str:
    result = CliRunner().invoke(bench, ["stream", *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_arrivals_are_poisson_and_users_zipf() -> None:
    plan = schedule(MIX, 500.0, 20.0)
    assert len(plan.requests_at) == pytest.approx(10_000, rel=0.05)
    assert len(plan.events_at) == pytest.approx(40_000, rel=0.05)
    gaps = np.diff(plan.events_at)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    counts = np.sort(np.bincount(plan.event_users, minlength=50))[::-1]
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)
    assert plan.cold.mean() == pytest.approx(0.25, abs=0.02)
    assert (schedule(MIX, 500.0, 20.0).events_at == plan.events_at).all()


def test_outcomes_are_told_apart() -> None:
    outcomes = Outcomes(timeout_s=1.0)
    stages = {"wait": 1.0, "append": 0.0, "decode": 2.0, "total": 4.0}
    answer = {"stages_ms": stages, "cache": "warm"}
    outcomes.note(answer, 0.006)
    outcomes.note(answer, 1.5)
    outcomes.note({"stages_ms": {"total": 3.0}, "error": "over_capacity"}, 0.01)
    outcomes.note({"stages_ms": {"total": 900.0}, "error": "deadline_exceeded"}, 0.01)
    row = outcomes.row(5, 2.0)
    assert (row["answered"], row["goodput"], row["refused"], row["late"], row["unanswered"]) == (4, 0.5, 1, 2, 1)
    assert row["refused_p99_ms"] == 3.0
    assert row["stream_ms"] == pytest.approx((2.0 + 1496.0) / 2)


def test_in_process_with_an_engine_of_given_step_times(tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "curve.png"
    options = ["--in-process", "--engine", "paced", "--paced", "5", "50", "5", "--events-per-request", "2"]
    loads = ["--rate", "40", "--rate", "80", "--overload", "3", "--seconds", "1", "--users", "20", "--cold", "0.1"]
    output = run(*options, *loads, "--context", "90", "--json", str(figures), "--plot", str(plot))
    rows = json.loads(figures.read_text())["rows"]
    assert [round(row["offered"]) for row in rows[:2]] == [40, 80]
    assert rows[2]["offered"] == pytest.approx(3 * max(row["goodput"] for row in rows[:2]))
    assert all(row["unanswered"] == 0 for row in rows)
    assert all(row["caches"].get("cold", 0) > 0 for row in rows)
    assert "3 x the best load" in output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_so_many_requests_at_a_time(tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "curve.png"
    options = ["--in-process", "--engine", "paced", "--paced", "20", "0", "0", "--events-per-request", "2"]
    loads = ["--concurrency", "1", "--concurrency", "6", "--seconds", "1", "--users", "40", "--cold", "0.1"]
    output = run(*options, *loads, "--p99-ms", "900", "--json", str(figures), "--plot", str(plot))
    alone, six = json.loads(figures.read_text())["rows"]
    assert [alone["offered"], six["offered"]] == [1, 6]
    assert alone["requests_per_s"] <= 50.5  # a step of 20 ms each
    assert six["goodput"] > 1.4 * alone["goodput"]  # they share steps, also where another process has the core for some
    for row in (alone, six):
        assert row["unanswered"] == 0
        assert row["events_per_s"] == pytest.approx(2 * row["requests_per_s"], abs=4)
        assert row["caches"].get("cold", 0) > 0
    assert "requests/s, 6 at a time" in output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_in_process_with_a_model() -> None:
    shape = ["--shape", "tiny", "--context", "60", "--users", "4", "--beam", "8", "--k", "4", "--device", "cpu"]
    assert "kept up with" in run("--in-process", *shape, "--rate", "5", "--seconds", "2", "--timeout-ms", "20000")


def test_loads_rise_until_one_is_too_much(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    paced = ["--engine", "paced", "--paced", "20", "1000", "0", "--events-per-request", "0", "--timeout-ms", "300"]
    run("--in-process", *paced, "--from", "4", "--seconds", "2", "--json", str(figures))
    rows = json.loads(figures.read_text())["rows"]
    assert 1 < len(rows) < 10  # a request takes 64 ms: some 14 a second
    assert rows[-1]["goodput"] < 0.9 * rows[-1]["offered"] or rows[-1]["p99_ms"] > 300


@pytest.mark.parametrize(
    "options",
    [
        ["--in-process", "--echo"],
        ["--engine", "null", "--shape", "tiny"],
        ["--concurrency", "2"],
        ["--in-process", "--concurrency", "2", "--rate", "9"],
    ],
)
def test_options_that_exclude_each_other_are_refused(options: list[str]) -> None:
    result = CliRunner().invoke(bench, ["stream", *options])
    assert result.exit_code == 1
    assert "leave out" in result.output


def test_in_process_needs_no_kafka_client() -> None:
    """The machines with GPUs have none."""
    program = (
        "import sys; sys.modules.update(aiokafka=None, faust=None);"
        "from xgr_stream.cli.benches import stream; stream.WARM_UP_S = 0.5;"
        "from xgr_stream.cli.main import main;"
        "main(['bench', 'stream', '--in-process', '--rate', '20', '--seconds', '1', '--users', '100'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "kept up with" in done.stdout


@pytest.mark.embedded
@pytest.mark.integration
@pytest.mark.parametrize("options", [["--driver", "kafka"], ["--driver", "faust", "--echo"]])
def test_through_a_broker_and_beside_a_bare_echo(options: list[str], tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    load = ["--rate", "20", "--seconds", "2", "--timeout-ms", "20000", "--json", str(figures)]
    output = run(*options, *load)
    ours, *others = json.loads(figures.read_text())["rows"]
    assert [row["run"] for row in (ours, *others)] == ["xgr", "echo"][: 1 + ("--echo" in options)]
    assert [row["unanswered"] for row in (ours, *others)] == [0] * (1 + len(others))
    assert ours["late"] == 0
    assert ("x the bare Faust echo's" in output) == ("--echo" in options)


@pytest.mark.embedded
@pytest.mark.integration
@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a worker ends by itself, when nobody is at its input any more"
)
def test_a_worker_ends_with_the_bench_that_started_it() -> None:
    """Frozen, so that it can't of its own accord."""
    with subprocess.Popen(
        [sys.executable, "-c", "from xgr_stream.cli.main import main; main()", "bench", "stream", "--rate", "20"],
        stdout=subprocess.DEVNULL,
    ) as bench_process:
        children = Path(f"/proc/{bench_process.pid}/task/{bench_process.pid}/children")
        try:
            worker = until(lambda: next((pid for pid in children.read_text().split() if _is_worker(pid)), None))
            os.kill(int(worker), signal.SIGSTOP)
        finally:
            bench_process.terminate()
    try:
        until(lambda: not _is_worker(worker))
    except TimeoutError:
        os.kill(int(worker), signal.SIGKILL)
        raise


def _is_worker(pid: str) -> bool:
    """Not one that ended: it has no command line any more."""
    try:
        return b"stream_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(found: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if what := found():
            return what
        time.sleep(0.05)
    raise TimeoutError


FAUST_WITHOUT_A_BROKER = """
import asyncio
from xgr_stream.cli import faust_app
from xgr_stream.cli.benches import stream_worker

class App:
    crash_reason = None

    def finalize(self): pass

    async def start(self): pass

    async def wait_for_stopped(self, stopping):
        await stopping

    async def stop(self):
        await asyncio.Event().wait()

async def telling():
    print("serving", flush=True)

faust_app.END_S = 0.2
asyncio.run(stream_worker._run_app(App(), telling()))
"""


def test_a_worker_with_faust_ends_without_a_broker() -> None:
    with subprocess.Popen([sys.executable, "-c", FAUST_WITHOUT_A_BROKER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        process.terminate()
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
