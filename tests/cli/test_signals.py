"""Signals that tell a worker process to end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

TOLD_TWICE = """
import asyncio, os, signal, sys
from xgr_stream.cli.signals import on_first_signal

set_handler = signal.signal

def set_and_send(number, handler):
    set_handler(number, handler)
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        os.kill(os.getpid(), number)

async def serve():
    global stopping
    stopping = asyncio.Event()
    on_first_signal(stopping.set)
    signal.signal = set_and_send
    print("serving", flush=True)
    await stopping.wait()

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
