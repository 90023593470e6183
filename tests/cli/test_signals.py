"""Signals that tell a worker process to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xgr_stream.cli.signals import FirstSignal

TOLD_TWICE = """
import asyncio, os, signal, sys
from xgr_stream.cli.signals import FirstSignal

set_handler = signal.signal

def set_and_send(number, handler):
    set_handler(number, handler)
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        os.kill(os.getpid(), number)

async def serve():
    global stopping
    stopping = asyncio.Event()
    signals.calls(stopping.set)
    signal.signal = set_and_send
    print("serving", flush=True)
    await stopping.wait()

with FirstSignal() as signals:
    asyncio.run(serve())
print("answered", flush=True)
sys.stdin.read()
"""
"""Sends itself another one, too, whenever what a signal does changes so that it would end the process."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_ending_is_not_killed_by_another_signal(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TOLD_TWICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        process.send_signal(number)
        assert process.stdout.readline() == "answered\n"
        process.send_signal(number)
        process.stdin.close()
        assert process.wait() == 0


TOLD_BEFORE = """
import asyncio, os, signal, sys
from xgr_stream.cli.signals import FirstSignal

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

def load():
    try:
        if sys.argv[1] == "in a finalizer":
            Finalized()
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        print("went on")
    finally:
        print("undone")
        if sys.argv[1] == "what is under way can't be undone":
            raise RuntimeError("a capture was not ended")

async def serve():
    stopping = asyncio.Event()
    signals.calls(stopping.set)
    await stopping.wait()
    print("stopped")

with FirstSignal() as signals:
    load()
    asyncio.run(serve())
"""


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("at any moment", "undone\n"),
        ("what is under way can't be undone", "undone\n"),
        ("in a finalizer", "went on\nundone\nstopped\n"),
    ],
)
def test_a_process_that_is_told_to_end_before_it_serves(when: str, said: str) -> None:
    result = subprocess.run([sys.executable, "-c", TOLD_BEFORE, when], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, said), result.stderr


LOADS = """
import sys, time
from xgr_stream.cli.main import main
from xgr_stream.engine import Engine

def load(*_, **__):
    print("loading", flush=True)
    time.sleep(60)

Engine.load = load
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "driver"), [(signal.SIGTERM, "kafka"), (signal.SIGINT, "faust")])
def test_a_worker_that_loads_its_model_ends_with_0(number: signal.Signals, driver: str, tmp_path: Path) -> None:
    command = ["worker", "--driver", driver, "--model", str(tmp_path), "--catalog", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", LOADS, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        assert (process.wait(), process.stderr.read()) == (0, "")


MERGES = """
import asyncio, sys
import torch
from xgr_stream.cli import worker
from xgr_stream.cli.main import main
from xgr_stream.engine import Engine
from xgr_stream.stream.threads import on_a_thread
from xgr_stream.testing import NullEngine

class Engineless(NullEngine):
    def prepare(self): ...

async def serve(*_):
    numbers = torch.randn(1_000_000)

    def sort():
        while True:
            torch.sort(numbers)

    merging = asyncio.create_task(on_a_thread(sort, "xgr-merge"))
    await asyncio.sleep(0.2)

Engine.load = lambda *_, **__: Engineless()
worker._serve_with_kafka = serve
main(sys.argv[1:])
"""


def test_a_worker_that_merges_ends_with_0(tmp_path: Path) -> None:
    """And not with what torch aborts with where Python's end takes its thread away."""
    command = ["worker", "--driver", "kafka", "--model", str(tmp_path), "--catalog", str(tmp_path)]
    result = subprocess.run([sys.executable, "-c", MERGES, *command], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_process_that_was_not_told_has_its_handlers_back() -> None:
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with FirstSignal():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == former


def test_an_import_is_not_broken_off_by_an_exception(tmp_path: Path) -> None:
    """One that was thrown through a module of C++ aborted a worker (-6)."""
    (tmp_path / "told.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException:\n    os._exit(6)\n"
    )
    importing = "import sys; from xgr_stream.cli.signals import FirstSignal\nwith FirstSignal(): import told"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))}
    assert subprocess.run([sys.executable, "-c", importing], env=environment, check=False).returncode == 0
