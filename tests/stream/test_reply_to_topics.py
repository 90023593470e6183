"""Topics that requesters choose: what is not there is asked for no more, and what fails stands for what is like it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import faust
import pytest

from xgr_stream.metrics import Metrics
from xgr_stream.stream import copies, models
from xgr_stream.stream.attachment import attach
from xgr_stream.stream.catalog_feed import CatalogFeed
from xgr_stream.stream.copies import Copies
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.runtime import Runtime
from xgr_stream.testing import NullEngine


async def test_what_a_worker_reads_takes_no_replies(app: faust.App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog topic of each model that it was told to load, and what it copies events from."""
    monkeypatch.setattr(models, "ensure_topics", nothing)
    monkeypatch.setattr(CatalogFeed, "start", nothing)
    views, engine = app.topic("page-views"), NullEngine()
    attach(app, engine=engine, events=views, event=lambda _: None, repartition=True)
    driver = next(child for child in app._children if isinstance(child, FaustDriver))
    runtime = Runtime(
        driver._make_setup(), on_progress=lambda *_: None, on_failure=lambda _: None, end_offset=lambda *_: None
    )

    def refused() -> list[str]:
        names = ["page-views", "catalog-b", "elsewhere"]
        return [name for name in names if not runtime.processor._requests._may_reply_to(name)]

    runtime._device.start()
    try:
        assert refused() == ["page-views"]
        challenger = NullEngine(history=engine.history, version="b")
        await runtime.models.load(challenger, catalog_topic="catalog-b")
        assert refused() == ["page-views", "catalog-b"]
        await runtime.models.promote()
        assert refused() == ["page-views", "catalog-b"]
    finally:
        runtime._device.stop(1.0)


async def nothing(*_: object) -> None: ...


class Client:
    """Knows the topic `there`; waits for any other for as long as it is let."""

    def __init__(self) -> None:
        self._topics: set[str] = set()
        self.cluster = SimpleNamespace(partitions_for_topic=lambda topic: {0} if topic == "there" else None)

    async def partitions_for(self, topic: str) -> set[int]:
        self._topics.add(topic)
        if topic != "there":
            await asyncio.Event().wait()
        return {0}


def topics() -> tuple[Copies, Client]:
    client = Client()
    producer: Any = SimpleNamespace(client=client, partitions_for=client.partitions_for)
    return Copies(producer, Metrics()), client


async def test_a_topic_that_is_not_there_is_asked_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "LOOK_UP_TIMEOUT_S", 0.01)
    found, client = topics()
    for topic in ("there", "nowhere"):
        await found.look_up(topic)
    assert found.takes("there")
    assert found.known("nowhere")
    assert not found.takes("nowhere")
    assert client._topics == {"there"}


async def test_only_so_many_are_looked_up_at_a_time() -> None:
    found, client = topics()
    waiting = [asyncio.create_task(found.look_up(f"nowhere-{i}")) for i in range(copies.MAX_LOOK_UPS + 5)]
    done, pending = await asyncio.wait(waiting, timeout=0.05)
    assert (len(done), len(pending)) == (5, copies.MAX_LOOK_UPS)
    assert len(client._topics) == copies.MAX_LOOK_UPS
    for task in pending:
        task.cancel()
    for look_up in list(found._looking.values()):
        look_up.cancel()
    await asyncio.wait(pending)


async def test_after_a_topic_that_takes_none_only_those_that_did_are_written_to() -> None:
    found, client = topics()
    client.cluster.partitions_for_topic = lambda topic: {0}
    client.partitions_for = _known  # type: ignore[method-assign]
    found._producer.partitions_for = _known
    for topic in ("old", "forbidden", "new"):
        await found.look_up(topic)
    assert found.takes("old")
    found.written(["old"])
    assert found.takes("new")
    found.refuse(["forbidden"])
    assert [found.takes(topic) for topic in ("old", "forbidden", "new")] == [True, False, False]
    found._wary_until = 0.0
    assert [found.takes(topic) for topic in ("old", "forbidden", "new")] == [True, False, True]


async def _known(topic: str) -> set[int]:
    return {0}
