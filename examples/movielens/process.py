"""The demo's app as a child process: started, watched until it serves, asked for its metrics, stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from xgr_stream.testing.broker import Broker, EmbeddedBroker, free_port

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class AppProcess:
    """`examples.movielens.app` on a broker, for as long as it is entered; entering waits until it serves.

    `warm`: whether it warms the users whose histories it finds."""

    def __init__(
        self, broker: Broker, run: str, model: Path, *, beam: int, cache_bytes: int, warm: bool, label: str
    ) -> None:
        self._port = free_port()
        self._label = label
        options = {
            "--broker": broker.bootstrap,
            "--run": run,
            "--model": str(model),
            "--beam": str(beam),
            "--cache-bytes": str(cache_bytes),
            "--web-port": str(self._port),
        }
        if not warm:
            options["--warm-users"] = "0"
        embedded = ["--embedded"] if isinstance(broker, EmbeddedBroker) else []
        arguments = [part for option in options.items() for part in option]
        self._command = [sys.executable, "-m", "examples.movielens.app", *arguments, *embedded]

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        families = text_string_to_metric_families(self._get("/metrics"))
        return next(sample.value for family in families for sample in family.samples if sample.name == name)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        with tqdm(desc=self._label, bar_format="{desc} {elapsed}", mininterval=1.0) as progress:
            while not self._serves():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the app does not serve; it said:\n{self._said()}")
                time.sleep(0.1)
                progress.update()

    def _serves(self) -> bool:
        try:
            readiness = json.loads(self._get("/readyz"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return bool(readiness["ready"] and readiness["partitions"])

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5.0) as response:
            return str(response.read().decode())

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
