"""The worker command and the examples, each run as its documentation says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.admin import NewTopic

from tests.integration.workers import ROOT
from xgr_stream.client import RecommendClient
from xgr_stream.errors import XgrError
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


@contextlib.asynccontextmanager
async def process(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process of this project's; ended with SIGTERM, upon which it must end well."""
    running = await asyncio.create_subprocess_exec(
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
    try:
        yield running
        if running.returncode is None:
            running.send_signal(signal.SIGTERM)
        output, _ = await asyncio.wait_for(running.communicate(), 30)
        assert running.returncode == 0, output.decode()
    except BaseException:
        if running.returncode is None:
            running.kill()
        print((await running.communicate())[0].decode())  # what it said, into the test's report
        raise


@pytest.mark.parametrize("driver", ["kafka", "faust"])
async def test_worker_command_and_client_example(broker: Broker, shop: Path, driver: str) -> None:
    port = free_port()
    worker = [
        "-c",
        "from xgr_stream.cli.main import main; main()",
        "worker",
        "--broker",
        broker.bootstrap,
        "--driver",
        driver,
    ]
    worker += ["--model", str(shop / "model"), "--catalog", str(shop / "catalog.parquet"), "--web-port", str(port)]
    if driver == "faust":  # both take the default topics, one after the other
        worker += ["--group", "another"]
    async with process(*worker):
        await _until_answering(broker)
        async with process("-m", "examples.client", "--broker", broker.bootstrap) as client:
            output, _ = await asyncio.wait_for(client.communicate(), 40)
        assert b"2 events seen" in output or b"4 events seen" in output
        assert b"20 of 20 other users answered" in output
        metrics = await _get(port, "/metrics")
        assert "xgr_requests_total{" in metrics


async def _until_answering(broker: Broker) -> None:
    async with asyncio.timeout(50):
        while True:
            with contextlib.suppress(XgrError):
                async with RecommendClient(broker.connection) as client:
                    await client.recommend("anybody", timeout=40)
                    return
            await asyncio.sleep(0.2)


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.decode()


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
    admin = broker.connection.admin()
    await admin.start()
    await admin.create_topics([NewTopic("offers", 1, 1), NewTopic("page-views", 4, 1)])
    await admin.close()
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
            async with asyncio.timeout(50):
                while len(offers) < 2:
                    offers.append(json.loads((await consumer.getone()).value))
            assert "xgr_events_total 2.0" in await _get(port, "/metrics")
            assert json.loads((await _get(port, "/readyz")).partition("\r\n\r\n")[2])["partitions"] == [0, 1, 2, 3]
        for offer in offers:
            assert offer["user_id"] == "user-7"
            assert len(offer["item_ids"]) == 5
            assert "item-3" not in offer["item_ids"]
    finally:
        await consumer.stop()
        await producer.stop()
