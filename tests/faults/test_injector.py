"""Which worker a fault befalls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from xgr_stream.cli.faults.fleet import Fleet, State, WorkerProcess
from xgr_stream.cli.faults.injector import Injector
from xgr_stream.cli.faults.load import Load
from xgr_stream.cli.faults.plan import Fault, Soak
from xgr_stream.cli.faults.topics import Progress


class Paper(Fleet):
    """Workers that are no processes. `served`: partitions of each; `ends`: who ends while they are asked."""

    def __init__(self, *served: int, ends: int | None = None) -> None:
        super().__init__(lambda port: [], Path())
        self.workers = [WorkerProcess(number, 0, Path(), cast("Any", None)) for number in range(len(served))]
        self.frozen: list[int] = []
        self._served = served
        self._ends = ends

    async def served_and_copied(self, worker: WorkerProcess) -> tuple[int, int]:
        if self._ends is not None:
            self.workers[self._ends].state = State.ENDED
        return self._served[worker.number], 0

    def freeze(self, worker: WorkerProcess) -> None:
        self.frozen.append(worker.number)
        worker.state = State.FROZEN

    def thaw(self, worker: WorkerProcess) -> None:
        worker.state = State.RUNNING


async def frozen(fleet: Paper, size: float) -> tuple[list[int], str]:
    """Whom a freeze of this size befalls, and what is said of it."""
    said: list[str] = []
    soak = Soak(0, session_timeout_s=0.001)
    injector = Injector(soak, fleet, cast("Load", None), None, cast("Progress", None), said.append)
    await injector.run([Fault(0.0, "freeze a worker", size)])
    return fleet.frozen, said[0]


@pytest.mark.parametrize("size", [0.0, 0.5, 0.99])
async def test_a_worker_that_serves_is_frozen(size: float) -> None:
    """Of another no partition waits for the session: it tests nothing."""
    whom, said = await frozen(Paper(0, 4, 0), size)
    assert whom == [1]
    assert said.endswith("its session is 0.001 s")


async def test_where_none_serves_one_is_frozen_all_the_same() -> None:
    whom, said = await frozen(Paper(0, 0), 0.9)
    assert whom == [1]
    assert said.endswith("it serves nothing yet")


async def test_one_that_ended_meanwhile_is_not_frozen() -> None:
    assert (await frozen(Paper(0, 4, ends=1), 0.9))[0] == [0]
