"""Signals that tell a worker process to end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

TOLD_TWICE = """
import asyncio, sys
from xgr_stream.cli.signals import on_first_signal

async def serve():
    stopping = asyncio.Event()
    on_first_signal(stopping.set)
    print("serving", flush=True)
    await stopping.wait()

asyncio.run(serve())
print("answered", flush=True)
sys.stdin.read()
"""


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
