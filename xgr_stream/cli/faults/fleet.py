"""Worker processes: started, killed, frozen, told to leave; and watched, since none may end of its own accord."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path

import aiohttp

from xgr_stream.testing.broker import die_with_parent, free_port

LEAVE_TIMEOUT_S = 30.0
"""How long a worker may take to end when it is told to, as orchestrators have it by default."""
READY_POLL_S = 0.1
PAGE_TIMEOUT_S = 2.0
LOG_TAIL_BYTES = 1_500
SERVING = "serving "
"""A worker says it when it has loaded; before that a SIGTERM simply ends it."""
NO_BROKER = "Error: no broker at "
COPY_TAKEN, COPY_REFUSED = "goes on from its standby copy", "standby copy of partition"
"""What a worker says of a partition that it was given and kept a copy of. The latter is never to be seen."""

Command = Callable[[int], Sequence[str]]
"""Web port → what to run."""


class State(Enum):
    RUNNING = "running"
    FROZEN = "frozen"
    TOLD = "told to leave"
    ENDED = "ended"


class WorkerProcess:
    """One worker of the fleet."""

    def __init__(self, number: int, port: int, log: Path, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.port = port
        self.log = log
        self.process = process
        self.state = State.RUNNING

    def __str__(self) -> str:
        return f"worker {self.number}"

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended just now: the watch says what that means
            self.process.send_signal(number)

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


class Fleet:
    """All workers of a run. `differences` collects what no worker should do."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.differences: list[str] = []
        self.without_broker = 0
        """Workers that found no broker when they started: they say so and end, and are started again."""
        self.workers: list[WorkerProcess] = []
        self._command = command
        self._folder = folder
        self._watches: set[asyncio.Task[None]] = set()

    async def start(self) -> WorkerProcess:
        number, port = len(self.workers) + 1, free_port()
        log = self._folder / f"worker-{number}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *self._command(port),
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        worker = WorkerProcess(number, port, log, process)
        self.workers.append(worker)
        watch = asyncio.create_task(self._watch(worker))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return worker

    def running(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker.state is State.RUNNING]

    def alive(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker.state is not State.ENDED]

    # What may befall a worker

    async def kill(self, worker: WorkerProcess) -> None:
        worker.state = State.ENDED
        worker.send(signal.SIGKILL)
        await worker.process.wait()

    def freeze(self, worker: WorkerProcess) -> None:
        worker.state = State.FROZEN
        worker.send(signal.SIGSTOP)

    def thaw(self, worker: WorkerProcess) -> None:
        if worker.state is State.FROZEN:
            worker.state = State.RUNNING
            worker.send(signal.SIGCONT)

    async def leave(self, worker: WorkerProcess) -> float:
        """SIGTERM; the seconds that it took to end."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        worker.state = State.TOLD
        worker.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                code = await worker.process.wait()
        except TimeoutError:
            self.differences.append(
                f"{worker} did not end within {LEAVE_TIMEOUT_S:.0f} s of SIGTERM; it said: {worker.said()}"
            )
            await self.kill(worker)
        else:
            said = worker.said()
            early = code == -signal.SIGTERM and (SERVING not in said or NO_BROKER in said)
            if code != 0 and worker.state is State.TOLD and not early:  # else another fault killed it meanwhile
                self.differences.append(f"{worker} ended with {code} after SIGTERM; it said: {worker.said()}")
        worker.state = State.ENDED
        return loop.time() - started

    async def stop(self) -> None:
        """Kill what is left."""
        for worker in self.alive():
            await self.kill(worker)
        await asyncio.gather(*self._watches)

    async def _watch(self, worker: WorkerProcess) -> None:
        """A worker that ends of its own accord is a finding; as a supervisor would, start another."""
        code = await worker.process.wait()
        if worker.state not in (State.RUNNING, State.FROZEN):
            return
        worker.state = State.ENDED
        if NO_BROKER in worker.said():
            self.without_broker += 1
        else:
            self.differences.append(f"{worker} ended by itself with {code}; it said: {worker.said()}")
        await self.start()

    # What it says

    async def readiness(self, worker: WorkerProcess) -> str | None:
        """What its /readyz says; None while it serves its partitions."""
        try:
            status, text = await _page(worker, "readyz")
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"no answer ({type(error).__name__})"
        return None if status == 200 else text

    async def served_and_copied(self, worker: WorkerProcess) -> tuple[int, int]:
        """Partitions that it serves, and that it has copies of; none while it is not ready."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            (ready, readiness), (told, metrics) = [await _page(worker, name) for name in ("readyz", "metrics")]
            if ready == told == 200:
                copies = re.search(r"^xgr_standby_partitions (\d+)", metrics, re.MULTILINE)
                return len(json.loads(readiness)["partitions"]), int(copies[1]) if copies else 0
        return 0, 0

    async def serving(self) -> list[WorkerProcess]:
        """Those that are running and serve a partition."""
        running = self.running()
        told = await asyncio.gather(*map(self.served_and_copied, running))
        return [worker for worker, (served, _) in zip(running, told, strict=True) if served]

    async def ready(self, worker: WorkerProcess, timeout_s: float) -> bool:
        """Wait until the worker serves its partitions; False if it does not in that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while worker.state is not State.ENDED:
                    if await self.readiness(worker) is None:
                        return True
                    await asyncio.sleep(READY_POLL_S)
        return False

    def copies_taken(self) -> int:
        """Partitions that workers took on from their standby copies. A copy that did not hold is a difference."""
        logs = [(worker, worker.log.read_text(errors="replace").splitlines()) for worker in self.workers]
        self.differences += [
            f"{worker} said: {line}" for worker, lines in logs for line in lines if COPY_REFUSED in line
        ]
        return sum(COPY_TAKEN in line for _, lines in logs for line in lines)

    @property
    def most_log_lines(self) -> int:
        """Lines of the longest log: a broker that is away must not fill a disk."""
        return max((worker.log.read_bytes().count(b"\n") for worker in self.workers), default=0)


async def _page(worker: WorkerProcess, name: str) -> tuple[int, str]:
    """Status and text of one of its pages. Raises `aiohttp.ClientError` or `TimeoutError`."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PAGE_TIMEOUT_S)) as session,
        session.get(f"http://127.0.0.1:{worker.port}/{name}") as response,
    ):
        return response.status, await response.text()
