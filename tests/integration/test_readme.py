"""The README's programs that need a broker, as written but for its address."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewTopic

from tests.integration.test_examples import process, until_answering
from tests.readme import program
from xgr_stream.errors import DeadlineExceeded
from xgr_stream.testing import save_tiny_model, tiny_catalog
from xgr_stream.testing.broker import Broker, EmbeddedBroker, free_port

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
    admin = broker.connection.admin()
    await admin.start()
    await admin.create_topics([NewTopic("page-views", 4, 1)])
    await admin.close()
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
