"""The Faust app of a worker process of ours ends when it is told to, whatever Faust waits for."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from xgr_stream.cli.faust_app import make_app
from xgr_stream.stream.connection import Connection

SERVES = """
import asyncio, sys
from types import SimpleNamespace
import xgr_stream.cli.faust_app as faust_app
from xgr_stream.cli.signals import FirstSignal
from xgr_stream.errors import DeviceLost

class App:
    conf = SimpleNamespace(web_bind="127.0.0.1", web_port=1)
    web = SimpleNamespace(start_server=None)
    crash_reason = None

    def finalize(self): pass

    async def start(self):
        if sys.argv[1] == "starts for ever":
            await asyncio.Event().wait()

    async def wait_for_stopped(self, told):
        if sys.argv[1] == "crashes":
            self.crash_reason = DeviceLost("the device is gone")
        else:
            await told

    async def stop(self):
        if sys.argv[1] != "ends":
            await asyncio.Event().wait()

faust_app.END_S = 0.2
with FirstSignal() as signals:
    asyncio.run(faust_app.serve_app(App(), 0.1, signals))
"""


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("ends", 0, ""),
        ("stops for ever", 0, "what it has not committed comes again"),
        ("starts for ever", 0, "what it has not committed comes again"),
        ("crashes", 3, "Error: the device is gone"),
    ],
)
def test_a_worker_with_faust_ends_within_its_time(what: str, code: int, says: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("serving with Faust")
        if code == 0:
            process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert process.wait(60) == code
        assert time.monotonic() - started < 30
        assert says in process.stderr.read()


@pytest.mark.parametrize(("session_timeout_s", "request_timeout_s"), [(10, 90), (60, 90), (100, 130)])
def test_a_request_may_take_as_long_as_a_rebalance(session_timeout_s: int, request_timeout_s: int) -> None:
    """Faust refuses a session timeout above its request timeout, 90 s by default."""
    connection = Connection("127.0.0.1:9092", session_timeout_ms=session_timeout_s * 1000)
    settings = make_app(connection, "group", ("127.0.0.1", 1)).conf
    assert settings.broker_rebalance_timeout == session_timeout_s
    assert settings.broker_request_timeout == request_timeout_s
