"""The client under a Faust app's consumer is set right before the app starts it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetFetchRequest

from xgr_stream.stream.faust_client import set_consumer_right


async def test_a_broker_that_is_not_the_coordinator_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not, the app takes nothing to be committed, and reads its topics from their start."""
    asked = 0

    async def answer(*_: Any, **__: Any) -> Any:
        nonlocal asked
        asked += 1
        return SimpleNamespace(error_code=NotCoordinatorForGroupError.errno, topics=[])

    monkeypatch.setattr(AIOKafkaClient, "send", answer)
    app: Any = faust.App("app", broker="kafka://localhost:1", web_enabled=False, datadir=tmp_path)
    set_consumer_right(app, pytest.fail)
    set_consumer_right(app, pytest.fail)
    consumer = app.consumer._thread._create_consumer(loop=asyncio.get_running_loop())
    with pytest.raises(NotCoordinatorForGroupError):
        await consumer._client.send(0, OffsetFetchRequest("app", []))
    assert asked == 1
    await consumer.stop()


async def test_an_app_that_starts_again_hears_of_it_where_it_is_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runtime is another one after each start."""
    monkeypatch.setattr("xgr_stream.stream.faust_client.CHECK_INTERVAL_S", 0.01)

    class Refused(Exception):
        pass

    def refuse(_: Any) -> None:
        raise Refused

    monkeypatch.setattr("xgr_stream.stream.group_member.Admission.check", refuse)
    told: asyncio.Queue[BaseException] = asyncio.Queue()
    app: Any = faust.App("app", broker="kafka://localhost:1", web_enabled=False, datadir=tmp_path)
    set_consumer_right(app, pytest.fail)
    set_consumer_right(app, told.put_nowait)
    consumer = app.consumer._thread._create_consumer(loop=asyncio.get_running_loop())
    async with asyncio.timeout(5):
        assert isinstance(await told.get(), Refused)
    await consumer.stop()
