"""`bench stream` through a broker: a worker in a process of its own, and the load from this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from xgr_stream.cli.benches.arrivals import Schedule
from xgr_stream.cli.benches.latencies import Outcomes
from xgr_stream.cli.benches.report import environment
from xgr_stream.cli.benches.stream_subject import Run, Served
from xgr_stream.config import TopicNames
from xgr_stream.errors import EngineError
from xgr_stream.stream import codec
from xgr_stream.stream.partitioner import partitioner
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.testing.broker import ApacheKafka, Broker, EmbeddedBroker, OutsideBroker, die_with_parent

NUM_PARTITIONS = 4
READY_TIMEOUT_S = 60.0
LAST_WAIT_S = 5.0
NAP_S = 5e-4
LINGER_S = 0.005
"""How long events are gathered by their producer: Kafka's own default."""
MAX_BYTES = 1 << 20


@contextlib.contextmanager
def brokered(
    served: Served, address: str | None, kafka_home: Path | None, *, echo: bool
) -> Iterator[tuple[Mapping[str, object], Mapping[str, Run]]]:
    """The runs through a broker, each against a worker of its own, and what is said of them above the figures."""
    broker: Broker = EmbeddedBroker()
    said = "embedded, memory only: its latencies are not Kafka's"
    if kafka_home is not None:
        broker, said = ApacheKafka(kafka_home), "Apache Kafka, one node on this machine"
    elif address is not None:
        broker, said = OutsideBroker(address), address
    with broker, asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        runs: dict[str, Run] = {}
        for name, driver in (("xgr", served.driver), ("echo", "echo"))[: 1 + echo]:
            load = Load(served, broker, driver)
            runner.run(load.start())
            stack.callback(lambda load=load: runner.run(load.stop()))  # type: ignore[misc]
            runs[name] = partial(_run, runner, load)
        core = "any core" if served.core is None else f"core {served.core} alone"
        description = {
            "broker": said,
            "worker": f"one process, {served.driver} driver, {core}, event loop {load.loop_name}",
            "engine": served.described or str(served.setting.model),
            "cores": os.cpu_count(),
            **environment(torch.device("cpu")),
        }
        yield description, runs


def _run(runner: asyncio.Runner, load: Load, plan: Schedule, seconds: float) -> dict[str, object]:
    return runner.run(load.run(plan, seconds))


@dataclass(slots=True)
class _Sent:
    """What a run waits for."""

    due: dict[str, float]
    outcomes: Outcomes


class _Lane:
    """Events on their way to one partition, in batches, one under way at a time: to send each by itself takes the
    client more of this machine than it takes the worker to process it."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, partition: int) -> None:
        self.records: deque[tuple[bytes, bytes]] = deque()
        self._producer, self._topic, self._partition = producer, topic, partition
        self._sending: asyncio.Task[None] | None = None
        self._sent_at = float("-inf")

    def flush(self, now: float) -> None:
        """Send what there is, unless a batch is under way or was begun less than `LINGER_S` before `now`."""
        if self.records and now >= self._sent_at + LINGER_S and (self._sending is None or self._sending.done()):
            if self._sending is not None:
                self._sending.result()
            self._sent_at = now
            self._sending = asyncio.create_task(self._send())

    async def close(self) -> None:
        """Send what is left, and wait until all is written."""
        while self.records or self._sending is not None:
            if self._sending is not None:
                await self._sending
                self._sending = None
            self.flush(float("inf"))

    async def _send(self) -> None:
        batch = self._producer.create_batch()
        while self.records:
            key, value = self.records[0]
            if batch.append(timestamp=None, key=key, value=value) is None:
                break
            self.records.popleft()
        batch.close()
        await (await self._producer.send_batch(batch, self._topic, partition=self._partition))


class Load:
    """One worker, and the client that sends it events and requests."""

    def __init__(self, served: Served, broker: Broker, driver: str) -> None:
        self._served = served
        self._broker = broker
        self._driver = driver
        suffix = secrets.token_hex(4)
        self._topics = TopicNames(**{role: f"{name}-{suffix}" for role, name in asdict(TopicNames()).items()})
        self._asked = 0
        self._process: asyncio.subprocess.Process | None = None
        self._sent: _Sent | None = None
        self.loop_name = _loop_name()
        place = partitioner("murmur2", NUM_PARTITIONS)
        self._keys = [f"user-{number}".encode() for number in range(served.mix.users)]
        self._places = [0 if place is None else place(key) for key in self._keys]
        self._events = [codec.encode({"v": 1, "item_id": f"item-{number}"}, "msgpack") for number in range(1_000)]

    async def start(self) -> None:
        connection = self._broker.connection
        await ensure_topics(connection, self._topics, NUM_PARTITIONS)
        self._producer: AIOKafkaProducer = await connection.start_producer(linger_ms=0, max_batch_size=1 << 18)
        self._consumer: AIOKafkaConsumer = connection.consumer(auto_offset_reset="latest")
        await self._consumer.start()
        responses = [TopicPartition(self._topics.responses, number) for number in range(NUM_PARTITIONS)]
        self._consumer.assign(responses)
        await asyncio.gather(*map(self._consumer.position, responses))
        self._reading = asyncio.create_task(self._read())
        await self._start_worker()

    async def _start_worker(self) -> None:
        served = self._served
        settings = {
            "driver": self._driver,
            "broker": self._broker.bootstrap,
            "embedded": isinstance(self._broker, EmbeddedBroker),
            "group": self._topics.events,
            "topics": asdict(self._topics),
            "engine": served.engine,
            "times": [served.times.fixed_ms, served.times.row_us, served.times.token_us],
            "beam": served.beam,
            "timeout_ms": served.timeout_ms,
            "core": served.core,
            "model": str(served.setting.model),
            "catalog": str(served.setting.catalog or (served.setting.model or Path()) / "catalog.parquet"),
        }
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "xgr_stream.cli.benches.stream_worker", json.dumps(settings)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not (await self._worker_says())["ready"]:  # noqa: ASYNC110  it is another process
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 15.0)
            except TimeoutError:
                process.kill()
                await process.wait()
        await self._consumer.stop()
        await self._producer.stop()

    async def _worker_says(self) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EngineError("the worker was not started")
        process.stdin.write(b"\n")
        line = await process.stdout.readline()
        if not line:
            raise EngineError(f"the worker ended with exit code {await process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said

    async def run(self, plan: Schedule, seconds: float) -> dict[str, object]:
        """Send the plan's arrivals by the clock; the row of what came of them."""
        outcomes = Outcomes(self._served.timeout_ms / 1e3)
        sent = self._sent = _Sent({}, outcomes)
        before = await self._worker_says()
        began = time.monotonic()
        with_events = self._driver != "echo"
        await self._send(plan, began, sent, with_events=with_events)
        halfway = await self._worker_says()
        took = time.monotonic() - began
        give_up = began + seconds + self._served.timeout_ms / 1e3 + LAST_WAIT_S
        while sent.due and time.monotonic() < give_up:  # noqa: ASYNC110  the reader knows of no event
            await asyncio.sleep(0.01)
        row: dict[str, object] = {
            "requests_per_s": len(plan.requests_at) / seconds,
            "events_per_s": len(plan.events_at) / seconds if with_events else 0.0,
            **outcomes.row(len(plan.requests_at), seconds),
            "cpu": (halfway["cpu_s"] - before["cpu_s"]) / took,
        }
        if with_events:
            done = halfway["events"] - before["events"]
            row |= {"processed_per_s": done / took, "behind": round(len(plan.events_at) - done)}
            await self._caught_up(before["events"] + len(plan.events_at))
            after = await self._worker_says()
            cpu_s, events, requests = (after[name] - before[name] for name in ("cpu_s", "events", "requests"))
            row |= {"cpu_s": cpu_s, "events": events, "requests": requests}
            if events and not requests:
                row["event_us"] = cpu_s / events * 1e6
            elif requests and not events:
                row["request_us"] = cpu_s / requests * 1e6
        return row

    async def _caught_up(self, events: float) -> None:
        """Wait until the worker has the run's events, so that the next run begins without them."""
        give_up = time.monotonic() + 60.0
        while (await self._worker_says())["events"] < events and time.monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _send(self, plan: Schedule, began: float, sent: _Sent, *, with_events: bool) -> None:
        topics, producer = self._topics, self._producer
        requests, events = plan.requests_at.tolist(), plan.events_at.tolist() if with_events else []
        askers, doers = plan.request_users.tolist(), plan.event_users.tolist()
        next_request = next_event = 0
        lanes = [_Lane(producer, topics.events, number) for number in range(NUM_PARTITIONS)]
        while next_request < len(requests) or next_event < len(events):
            now = time.monotonic() - began
            while next_event < len(events) and events[next_event] <= now:
                user = doers[next_event]
                lanes[self._places[user]].records.append((self._keys[user], self._events[next_event % 1_000]))
                next_event += 1
            for lane in lanes:
                lane.flush(now)
            while next_request < len(requests) and requests[next_request] <= now:
                user = askers[next_request]
                self._asked += 1
                request_id = str(self._asked)
                sent.due[request_id] = began + requests[next_request]
                value = codec.encode(
                    {"v": 1, "request_id": request_id, "k": self._served.k, "beam_width": self._served.beam}, "msgpack"
                )
                await producer.send(topics.requests, value, self._keys[user], partition=self._places[user])
                next_request += 1
            await asyncio.sleep(NAP_S)
        for lane in lanes:
            await lane.close()

    async def _read(self) -> None:
        while True:
            batches = await self._consumer.getmany(timeout_ms=200)
            now = time.monotonic()
            for record in (record for batch in batches.values() for record in batch):
                response = codec.decode(record.value, MAX_BYTES)
                sent = self._sent
                due = None if sent is None else sent.due.pop(response["request_id"], None)
                if sent is None or due is None:
                    continue
                if self._driver == "echo":
                    sent.outcomes.ok_s.append(now - due)
                else:
                    sent.outcomes.note(response, now - due)


def _loop_name() -> str:
    try:
        import uvloop
    except ImportError:
        return "asyncio"
    return f"uvloop {uvloop.__version__}"
