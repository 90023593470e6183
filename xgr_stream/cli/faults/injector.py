"""Brings the faults of a plan about, each at its time, some at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Protocol

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from xgr_stream.cli.faults.fleet import Fleet, WorkerProcess
from xgr_stream.cli.faults.load import Load
from xgr_stream.cli.faults.plan import Fault, Soak
from xgr_stream.cli.faults.topics import Progress

MAX_WORKERS = 3
REWIND_TIMEOUT_S = 90.0
SLOW_FOR_S, SLOW_STOPPED_S, SLOW_RUNNING_S = 6.0, 0.35, 0.05
"""A slow worker runs for an eighth of the time, in pieces far shorter than its session."""


class Breakable(Protocol):
    """A broker that can be taken away for a while."""

    def halt(self, *, node: int = 0, kill: bool = False) -> None: ...

    def resume(self) -> None: ...


class Injector:
    """Runs a schedule against a fleet, its broker (None: not ours to break) and its group."""

    def __init__(
        self,
        soak: Soak,
        fleet: Fleet,
        load: Load,
        broker: Breakable | None,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self._soak = soak
        self._fleet = fleet
        self._load = load
        self._broker = broker
        self._progress = progress
        self._say = say
        self._chance = random.Random(soak.seed + 2)
        self._workers = asyncio.Lock()
        """Held while a fault needs the fleet for itself."""
        self._broker_away = asyncio.Lock()

    async def run(self, faults: list[Fault]) -> None:
        """All of them, until the last one is over and the broker and the frozen workers are back."""
        started = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(max(0.0, started + fault.at_s - asyncio.get_running_loop().time()))
                tasks.create_task(self._inject(fault))

    async def _inject(self, fault: Fault) -> None:
        match fault.kind:
            case "kill a worker":
                await self._kill(fault)
            case "freeze a worker":
                await self._freeze(fault)
            case "slow a worker":
                await self._slow(fault)
            case "a worker joins":
                await self._join(fault)
            case "a worker leaves":
                await self._leave(fault)
            case "stop the broker":
                await self._restart_broker(fault, kill=False, away_s=1 + 3 * fault.size)
            case "kill the broker":
                await self._restart_broker(fault, kill=True, away_s=1 + 5 * fault.size)
            case "rewind":
                await self._rewind(fault)
            case "corrupt messages":
                count = 3 + round(10 * fault.size)
                self._say(f"corrupt messages: {count} and as many faulty requests")
                await self._load.corrupt(count)

    # Workers

    async def _kill(self, fault: Fault) -> None:
        async with self._workers:
            worker = self._pick(fault)
            if worker is None:
                return
            self._say(f"{worker}: SIGKILL")
            await self._fleet.kill(worker)
        await asyncio.sleep(3 * fault.size)
        await self._start_another()

    async def _freeze(self, fault: Fault) -> None:
        async with self._workers:
            serving = await self._fleet.serving()  # of others no partition waits for its session
            worker = self._pick(fault, serving)
            if worker is None:
                return
            seconds = self._soak.session_timeout_s * (1.3 + fault.size)
            served = "" if worker in serving else "; it serves nothing yet"
            self._say(
                f"{worker}: SIGSTOP for {seconds:.1f} s, its session is {self._soak.session_timeout_s:g} s{served}"
            )
            self._fleet.freeze(worker)
        await asyncio.sleep(seconds)
        self._fleet.thaw(worker)

    async def _slow(self, fault: Fault) -> None:
        async with self._workers:
            worker = self._pick(fault)
        if worker is None:
            return
        self._say(f"{worker}: runs an eighth of the time for {SLOW_FOR_S:g} s")
        for _ in range(round(SLOW_FOR_S / (SLOW_STOPPED_S + SLOW_RUNNING_S))):
            async with self._workers:
                if worker not in self._fleet.running():
                    return
                self._fleet.freeze(worker)
            await asyncio.sleep(SLOW_STOPPED_S)
            self._fleet.thaw(worker)
            await asyncio.sleep(SLOW_RUNNING_S)

    async def _join(self, fault: Fault) -> None:
        if len(self._fleet.alive()) >= MAX_WORKERS:
            await self._leave(fault)
        else:
            await self._start_another()

    async def _leave(self, fault: Fault) -> None:
        async with self._workers:
            worker = self._pick(fault)
            if worker is None:
                return
            alone = len(self._fleet.alive()) == 1
            self._say(f"{worker}: SIGTERM")
            leaving = asyncio.create_task(self._fleet.leave(worker))
        if alone:
            await self._start_another()
        self._say(f"{worker} left after {await leaving:.1f} s")

    async def _start_another(self) -> None:
        async with self._workers:
            worker = await self._fleet.start()
        self._say(f"{worker} joins")

    def _pick(self, fault: Fault, rather: Iterable[WorkerProcess] = ()) -> WorkerProcess | None:
        """One of those that are running; of `rather`, where one of these still is."""
        running = self._fleet.running()
        if not running:
            self._say(f"{fault.kind}: no worker is running just now")
            return None
        chosen = [worker for worker in rather if worker in running] or running
        return chosen[int(fault.size * len(chosen)) % len(chosen)]

    # The broker

    async def _restart_broker(self, fault: Fault, *, kill: bool, away_s: float) -> None:
        if self._broker is None:
            return
        async with self._broker_away:
            node = self._chance.randrange(self._soak.nodes)
            name = "the broker" if self._soak.nodes == 1 else f"broker {node + 1} of {self._soak.nodes}"
            self._say(f"{name}: {'SIGKILL' if kill else 'SIGTERM'}, back after {away_s:.1f} s")
            await asyncio.to_thread(self._broker.halt, node=node, kill=kill)
            await asyncio.sleep(away_s)
            await asyncio.to_thread(self._broker.resume)
            self._say(f"{name} is back")

    # The group

    async def _rewind(self, fault: Fault) -> None:
        """Stop all workers, set the offsets of some partitions back, and start as many: what was done comes again, and
        events and requests in another order than before."""
        async with self._workers:
            workers = self._fleet.alive()
            for worker in workers:
                self._fleet.thaw(worker)
            kill = fault.size > 0.5
            self._say(f"rewind: all workers stop ({'SIGKILL' if kill else 'SIGTERM'})")
            if kill:
                await asyncio.gather(*map(self._fleet.kill, workers))
            else:
                await asyncio.gather(*map(self._fleet.leave, workers))
            parts = {tp: self._chance.random() for tp in self._progress.partitions if self._chance.random() < 0.7}
            if self._soak.transactional:  # a request whose offset somebody sets back is asked again
                parts = {tp: part for tp, part in parts.items() if self._progress.of_events(tp)}
            back = await self._set_back(parts)
            for _ in range(max(1, len(workers))):
                await self._fleet.start()
        listed = ", ".join(f"{tp.topic}-{tp.partition} by {count}" for tp, count in sorted(back.items()) if count)
        self._say(f"rewind: {listed or 'nothing was committed yet'}; {len(workers)} workers start")

    async def _set_back(self, parts: dict[TopicPartition, float]) -> dict[TopicPartition, int]:
        """As soon as the group is empty: killed members are in it until their sessions end."""
        async with asyncio.timeout(REWIND_TIMEOUT_S):
            while True:
                try:
                    return await self._progress.rewind(parts)
                except KafkaError:
                    await asyncio.sleep(0.5)
