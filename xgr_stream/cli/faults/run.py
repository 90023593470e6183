"""One soak run: a broker, a fleet, load, faults; then the audit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError

from xgr_stream.cli.faults.audit import (
    Findings,
    audit_answers,
    audit_dead_letters,
    audit_events,
    audit_histories,
    audit_once,
)
from xgr_stream.cli.faults.fleet import Fleet
from xgr_stream.cli.faults.injector import Breakable, Injector
from xgr_stream.cli.faults.load import Load
from xgr_stream.cli.faults.plan import Soak, schedule
from xgr_stream.cli.faults.recompute import audit_items
from xgr_stream.cli.faults.topics import Progress, Written, written
from xgr_stream.cli.faults.truth import Truth
from xgr_stream.cli.faults.views import Views
from xgr_stream.config import CacheConfig, EngineConfig, StreamConfig, TopicNames
from xgr_stream.engine import Engine
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.testing import save_tiny_model, tiny_catalog
from xgr_stream.testing.broker import ApacheKafka

BROKER_PROPERTIES = "log.cleaner.backoff.ms=500"
CHANGELOG = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.01",
    "segment.ms": "5000",
    "max.compaction.lag.ms": "5000",
}
"""Compaction happens while the faults do."""
XGR = {"window": {"max_events": 48, "stride": 24}, "tail": [1]}
"""The window moves on within a run, and a tail stands before the next item."""
BEAM_WIDTH = 16
CHUNK_TOKENS = 32
"""Of a prefill: a window has up to 145 tokens."""
STANDBY_MIB = 64
CACHE_MIB = 8
"""Some users are evicted."""
READY_TIMEOUT_S = 90.0
SETTLE_TIMEOUT_S = 120.0
SETTLE_POLL_S = 0.5

Say = Callable[[str], None]


async def soak(plan: Soak, home: str | None, brokers: str | None, say: Say, logs: Path | None = None) -> Findings:
    """Run the plan on Apache Kafka from `home`, or on running `brokers`, and audit it. The workers' logs are kept in
    `logs`, if there is anything to find."""
    async with _broker(home, brokers, plan.nodes) as (connection, broker):
        with tempfile.TemporaryDirectory(prefix="xgr-soak-") as folder:
            findings = await _Run(plan, connection, broker, Path(folder), say).run()
            if logs is not None and findings.differences:
                await asyncio.to_thread(_keep, Path(folder), logs / f"seed-{plan.seed}")
            return findings


def _keep(folder: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, kept)


@contextlib.asynccontextmanager
async def _broker(
    home: str | None, brokers: str | None, nodes: int
) -> AsyncIterator[tuple[Connection, Breakable | None]]:
    if home is None:
        yield Connection(brokers or "localhost:9092"), None
        return
    replicated = f"\nmin.insync.replicas={min(2, nodes)}"
    broker = ApacheKafka(home, properties=BROKER_PROPERTIES + replicated, nodes=nodes)
    await asyncio.to_thread(broker.start)
    try:
        yield broker.connection, broker
    finally:
        await asyncio.to_thread(broker.stop)


class _Run:
    def __init__(self, plan: Soak, connection: Connection, broker: Breakable | None, folder: Path, say: Say) -> None:
        self._plan = plan
        self._connection = connection
        self._broker = broker
        self._folder = folder
        self._say = say
        self._started = 0.0
        own = folder.name[-6:]
        self._topics = TopicNames(
            *(f"{name}-{own}" for name in ("events", "requests", "responses", "dead", "log", "catalog"))
        )
        self._group = f"soak-{own}"
        self._model = save_tiny_model(folder / "model", xgr=XGR)
        self._catalog = folder / "catalog.parquet"
        tiny_catalog().save(self._catalog)
        self._views = Views(f"views-{own}", plan.partitions + 1) if plan.copies else None
        self._truth = Truth()
        self._fleet = Fleet(self._copying if plan.copies else self._command, folder)
        self._progress = Progress(connection, self._topics, plan.partitions, self._views, self._group)

    async def run(self) -> Findings:
        plan, fleet = self._plan, self._fleet
        load = Load(plan, self._connection, self._topics, self._views, self._truth)
        try:
            await self._create_topics()
            await load.start()
            await self._progress.start()
            first = [await fleet.start() for _ in range(plan.workers)]
            if not all([await fleet.ready(worker, READY_TIMEOUT_S) for worker in first]):
                raise RuntimeError(f"a worker is not ready within {READY_TIMEOUT_S:.0f} s; it said: {first[0].said()}")
            await self._under_faults(load)
            findings = Findings()
            findings.differ("records are not committed when all is quiet", await self._settled())
            if plan.standby:
                await self._hand_over()
            await asyncio.gather(*map(fleet.leave, fleet.alive()))
            self._timed("the workers have left")
            held = await written(
                self._connection, self._topics, plan.partitions, self._views, committed=plan.transactional
            )
            self._timed("the topics are read")
            return self._audited(findings, held)
        finally:
            await fleet.stop()
            await self._progress.stop()
            await load.stop()

    def _timed(self, line: str) -> None:
        self._say(f"  {asyncio.get_running_loop().time() - self._started:6.1f} s  {line}")

    async def _create_topics(self) -> None:
        """The changelog with settings of its own, so that compaction happens within a run, and the application's."""
        admin = self._connection.admin()
        await admin.start()
        replicas = min(3, len((await admin.describe_cluster())["brokers"]))
        created = [NewTopic(self._topics.changelog, self._plan.partitions, replicas, topic_configs=CHANGELOG)]
        if self._views is not None:
            created.append(NewTopic(self._views.topic, self._views.partitions, replicas))
        await admin.create_topics(created)
        await admin.close()
        await ensure_topics(self._connection, self._topics, self._plan.partitions)

    async def _under_faults(self, load: Load) -> None:
        """Load and faults for the plan's time, and on until the last fault is over."""
        loop = asyncio.get_running_loop()
        self._started = loop.time()
        injector = Injector(self._plan, self._fleet, load, self._broker, self._progress, self._timed)
        loading = asyncio.create_task(load.run())
        try:
            await injector.run(schedule(self._plan))
            await asyncio.sleep(max(0.0, self._started + self._plan.seconds - loop.time()))
        finally:
            await load.end(loading)
        self._timed(f"the load ends: {self._truth.num_events} events, {len(self._truth.requests)} requests")

    async def _settled(self) -> list[str]:
        """Wait until every record is acknowledged; what is not when the time is over."""
        if not self._fleet.alive():
            await self._fleet.start()
        behind: dict[TopicPartition, int] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while True:
                    with contextlib.suppress(KafkaError):
                        behind = await self._progress.behind()
                        if not behind:
                            break
                    await asyncio.sleep(SETTLE_POLL_S)
        self._timed("everything is committed" if not behind else "not everything is committed")
        if behind:
            for worker in self._fleet.alive():
                self._timed(f"{worker}: {await self._fleet.readiness(worker) or 'ready'}")
        return [f"{tp.topic}-{tp.partition} by {count}" for tp, count in behind.items()]

    async def _hand_over(self) -> None:
        """One worker leaves when everything is copied, so that a copy is taken on however slow all was before."""
        while len(self._fleet.alive()) < 2:
            await self._fleet.start()
        await self._until_whole()
        await self._fleet.leave(self._fleet.alive()[0])
        await self._until_whole()
        self._timed("the partitions of a worker that left are taken on")

    async def _until_whole(self) -> None:
        """Until every partition is served, and each worker has copies of those that it does not serve."""
        count = self._plan.partitions
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while True:
                    told = [await self._fleet.served_and_copied(worker) for worker in self._fleet.alive()]
                    if sum(own for own, _ in told) == count and all(own + copies == count for own, copies in told):
                        return
                    await asyncio.sleep(SETTLE_POLL_S)
        except TimeoutError:
            self._timed(f"not every partition is served and copied within {READY_TIMEOUT_S:.0f} s")

    def _audited(self, findings: Findings, held: Written) -> Findings:
        config, truth = StreamConfig().history, self._truth
        if self._plan.standby:
            findings.figures["partitions taken on from a standby copy"] = self._fleet.copies_taken()
        findings.differences += self._fleet.differences
        offsets = audit_events(truth, held, findings)
        audit_histories(truth, held, offsets, config, findings)
        audit_dead_letters(truth, held, self._topics, findings)
        answers = audit_answers(truth, held, offsets, findings)
        if self._plan.transactional:
            audit_once(held, self._progress.rewound, findings)
        settings = EngineConfig(beam_width=BEAM_WIDTH, cache=CacheConfig(budget_bytes=CACHE_MIB << 20))
        audit_items(truth, answers, Engine.load(self._model, self._catalog, config=settings), findings)
        findings.figures["workers started"] = len(self._fleet.workers)
        findings.figures["of them without a broker, and started again"] = self._fleet.without_broker
        findings.figures["lines of the longest worker log"] = self._fleet.most_log_lines
        return findings

    def _command(self, port: int) -> Sequence[str]:
        told = "import logging; logging.getLogger('xgr_stream.stream.recovery').setLevel('INFO')"
        program = f"{told}; from xgr_stream.cli.main import main; main()"
        options = {
            "broker": self._connection.bootstrap,
            "model": str(self._model),
            "catalog": str(self._catalog),
            "group": self._group,
            "driver": self._plan.driver,
            "session-timeout": f"{self._plan.session_timeout_s:g}",
            "beam-width": str(BEAM_WIDTH),
            "prefill-chunk-tokens": str(CHUNK_TOKENS),
            "cache-mib": str(CACHE_MIB),
            "web-port": str(port),
        }
        listed = [part for name, value in options.items() for part in (f"--{name}", value)]
        for role in TopicNames.__dataclass_fields__:
            listed += ["--topic", f"{role}={getattr(self._topics, role)}"]
        if self._plan.standby:
            listed += ["--standby-mib", str(STANDBY_MIB)]
        if self._plan.transactional:
            listed.append("--transactional")
        # One thread each: they share the machine's cores.
        return ["env", "OMP_NUM_THREADS=1", sys.executable, "-c", program, "worker", *listed]

    def _copying(self, port: int) -> Sequence[str]:
        settings = {
            "broker": self._connection.bootstrap,
            "group": self._group,
            "topics": asdict(self._topics),
            "views": None if self._views is None else self._views.topic,
            "model": str(self._model),
            "catalog": str(self._catalog),
            "port": port,
            "session_timeout_s": self._plan.session_timeout_s,
            "cache_bytes": CACHE_MIB << 20,
            "engine": {"beam_width": BEAM_WIDTH, "prefill_chunk_tokens": CHUNK_TOKENS},
            "stream": {"standby_bytes": STANDBY_MIB << 20} if self._plan.standby else {},
        }
        program = "xgr_stream.cli.faults.copying_worker"
        return ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", program, json.dumps(settings)]
