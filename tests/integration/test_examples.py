"""The worker command, the examples and the README's programs that need a broker, each run as documented but for its
address. They take the default topics, so they are of one file: one process runs them, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiokafka.admin import NewTopic

from tests.integration.workers import ROOT, make_topics
from tests.readme import program
from xgr_stream.client import RecommendClient
from xgr_stream.errors import DeadlineExceeded, XgrError
from xgr_stream.stream import codec
from xgr_stream.testing import save_tiny_model, tiny_catalog
from xgr_stream.testing.broker import Broker, EmbeddedBroker, free_port


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint and a catalog."""
    path = tmp_path_factory.mktemp("shop")
    save_tiny_model(path / "model")
    tiny_catalog().save(path / "catalog.parquet")
    return path


async def _started(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    """A Python process of this project's."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
            **environment,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@contextlib.asynccontextmanager
async def process(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process of this project's; ended with SIGTERM, upon which it must end well."""
    running = await _started(*arguments, **environment)
    try:
        yield running
        if running.returncode is None:
            running.send_signal(signal.SIGTERM)
        output, _ = await asyncio.wait_for(running.communicate(), 120)
        assert running.returncode == 0, output.decode()
    except BaseException:
        if running.returncode is None:
            running.kill()
        print((await running.communicate())[0].decode())  # what it said, into the test's report
        raise


# As `xgr-stream worker` does it, with short sessions where the broker takes half of one to let a member join.
RUN_WORKER = """
from xgr_stream.cli import worker
from xgr_stream.cli.main import main
if {embedded}:
    worker.SESSION_TIMEOUT_S = 2.0
main()
"""


@pytest.mark.parametrize("driver", ["kafka", "faust"])
async def test_worker_command_and_client_example(broker: Broker, shop: Path, driver: str, tmp_path: Path) -> None:
    port = free_port()
    options = {
        "--broker": broker.bootstrap,
        "--driver": driver,
        "--group": f"shop-{driver}",  # both take the default topics, one after the other
        "--model": str(shop / "model"),
        "--catalog": str(shop / "catalog.parquet"),
        "--web-port": str(port),
        "--shadow": str(save_tiny_model(tmp_path / "other", seed=9)),
        "--fraction": "0.5",
    }
    command = RUN_WORKER.format(embedded=isinstance(broker, EmbeddedBroker))
    async with process("-c", command, "worker", *(part for option in options.items() for part in option)):
        await until_answering(broker)
        async with process("-m", "examples.client", "--broker", broker.bootstrap) as client:
            output, _ = await asyncio.wait_for(client.communicate(), 120)
        assert b"2 events seen" in output or b"4 events seen" in output
        assert b"20 of 20 other users answered" in output
        assert await _get(port, "/healthz") == (200, "ok\n")
        status, ready = await _get(port, "/readyz")
        assert (status, json.loads(ready)["partitions"]) == (200, [0, 1, 2, 3])
        status, metrics = await _get(port, "/metrics")
        assert status == 200
        assert 'xgr_requests_total{cache="none",outcome="unknown_user"}' in metrics
        assert 'xgr_stage_seconds_count{stage="publish"}' in metrics
        async with asyncio.timeout(20):  # it is set once a second
            while 'xgr_events_behind{partition="3"} 0.0' not in (await _get(port, "/metrics"))[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        first, second = json.loads((await _get(port, "/models"))[1])["models"]
        assert (first["role"], second["role"], second["fraction"]) == ("primary", "shadow", 0.5)
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/models"
            async with session.post(url, json={"action": "promote"}) as response:
                assert (response.status, len((await response.json())["models"])) == (200, 1)
            async with session.post(url, json={"action": "drop"}) as response:
                assert (response.status, "no challenger" in (await response.json())["error"]) == (400, True)
        async with RecommendClient(broker.connection) as client_of_ours:
            assert (await client_of_ours.recommend("a-new-one", timeout=40)).model_version == second["version"]


# One after the other in one process, since most of what it takes them to refuse is to import torch.
RUN_BOTH_WORKERS = """
import sys
from xgr_stream.cli.main import main
try:
    main([*sys.argv[1:], "--driver", "kafka"])
except SystemExit as end:
    print("ended with", end.code, flush=True)
main([*sys.argv[1:], "--driver", "faust"])
"""


async def test_worker_command_refuses_topics_that_do_not_belong_together(broker: Broker, shop: Path) -> None:
    own = {
        role: f"{role}-{uuid.uuid4().hex[:8]}" for role in ("events", "requests", "responses", "changelog", "catalog")
    }
    await make_topics(broker, *(NewTopic(name, 3 if role == "requests" else 4, 1) for role, name in own.items()))
    options = ["--broker", broker.bootstrap, "--model", str(shop / "model")]
    options += ["--catalog", str(shop / "catalog.parquet"), "--web-port", str(free_port())]
    options += [part for role, name in own.items() for part in ("--topic", f"{role}={name}")]

    worker = await _started("-c", RUN_BOTH_WORKERS, "worker", *options)
    said = (await asyncio.wait_for(worker.communicate(), 120))[0].decode()
    assert worker.returncode == 1, said
    assert said.count(f"Error: topology: partition counts must be equal, but {own['events']} has 4") == 2, said
    assert said.count("ended with 1") == 1, said


async def until_answering(broker: Broker) -> None:
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(XgrError):
                async with RecommendClient(broker.connection) as client:
                    await client.recommend("anybody", timeout=40)
                    return
            await asyncio.sleep(0.2)


async def _get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a page on this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), 60)).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


RUN_EMBEDDED = """
from examples.embed_in_faust import app
from xgr_stream.testing.broker import EmbeddedBroker
EmbeddedBroker().tune(app)
app.main()
"""


async def test_example_that_embeds_in_faust(broker: Broker, shop: Path, tmp_path: Path) -> None:
    start = ["-c", RUN_EMBEDDED] if isinstance(broker, EmbeddedBroker) else ["-m", "examples.embed_in_faust"]
    port = free_port()
    settings = {
        "SHOP_BROKER": f"kafka://{broker.bootstrap}",
        "SHOP_MODEL": str(shop / "model"),
        "SHOP_CATALOG": str(shop / "catalog.parquet"),
        "SHOP_WEB_PORT": str(port),
        "F_DATADIR": str(tmp_path),
    }
    await make_topics(broker, NewTopic("offers", 1, 1), NewTopic("page-views", 4, 1))
    producer = await broker.connection.start_producer()
    consumer = broker.connection.consumer(auto_offset_reset="earliest")
    consumer.subscribe(["offers"])
    await consumer.start()
    try:
        async with process(*start, "worker", "-l", "warn", **settings):
            for item in ("item-1", "item-2"):
                view = {"user_id": "user-7", "item_id": item, "cart": ["item-3"]}
                await producer.send_and_wait("page-views", codec.encode(view, "json"), b"user-7")
            offers = []
            async with asyncio.timeout(120):
                while len(offers) < 2:
                    offers.append(json.loads((await consumer.getone()).value))
            assert "xgr_events_total 2.0" in (await _get(port, "/metrics"))[1]
            assert json.loads((await _get(port, "/readyz"))[1])["partitions"] == [0, 1, 2, 3]
            assert await _get(port, "/healthz") == (200, "ok\n")
        for offer in offers:
            assert offer["user_id"] == "user-7"
            assert len(offer["item_ids"]) == 5
            assert "item-3" not in offer["item_ids"]
    finally:
        await consumer.stop()
        await producer.stop()


RUN_SHOP = """
import os
os.chdir({directory!r})
{program}
if {embedded}:
    from xgr_stream.testing.broker import EmbeddedBroker
    EmbeddedBroker().tune(app)
app.main()
"""


async def test_the_faust_app_and_the_client(broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(tmp_path / "models" / "shop")
    tiny_catalog().save(tmp_path / "models" / "shop" / "catalog.parquet")
    await make_topics(broker, NewTopic("page-views", 4, 1))
    shop = RUN_SHOP.format(
        directory=str(tmp_path),
        program=program("xgr.attach").replace("localhost:9092", broker.bootstrap),
        embedded=isinstance(broker, EmbeddedBroker),
    )
    arguments = ("worker", "-l", "warn", "--web-port", str(free_port()))
    async with process("-c", shop, *arguments, F_DATADIR=str(tmp_path), PYTHONUNBUFFERED="1") as running:
        await until_answering(broker)
        await _run_client(program("RecommendClient").replace("localhost:9092", broker.bootstrap))
        assert capsys.readouterr().out.startswith(("warm [", "appended [", "cold ["))

        producer = await broker.connection.start_producer()
        view = json.dumps({"user_id": "user-7", "cart": ["item-3"]}).encode()
        await producer.send_and_wait("page-views", view, b"user-7")
        await producer.stop()
        assert running.stdout is not None
        async with asyncio.timeout(30):
            while "['item-" not in (line := (await running.stdout.readline()).decode()):  # Faust logs what is printed
                assert line
        assert "'item-3'" not in line


async def _run_client(source: str) -> None:
    """Its half second is meant for a machine that does nothing else."""
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)
    async with asyncio.timeout(30):
        while True:
            try:
                return await names["main"]()
            except DeadlineExceeded:
                await asyncio.sleep(0.5)
