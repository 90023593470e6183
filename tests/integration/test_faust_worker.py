"""The Faust app as a process: two workers, a restart, a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faust
import pytest
import torch
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from click.testing import CliRunner

from tests.integration.conftest import own_topics
from tests.integration.raw import Raw, write_too_large
from tests.integration.workers import FaustWorker, make_topics, until
from xgr_stream import Engine
from xgr_stream.cli.main import main
from xgr_stream.client import RecommendClient
from xgr_stream.config import StreamConfig, TopicNames
from xgr_stream.errors import TopologyError
from xgr_stream.stream.attachment import attach
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.topology import ensure_topics
from xgr_stream.testing import NullEngine, save_tiny_model, tiny_catalog, tiny_model
from xgr_stream.testing.broker import Broker
from xgr_stream.types import RecommendResponse, Status

SCORE_TOLERANCE = 1e-4


async def test_two_workers_answer_every_request_as_the_engine_does(broker: Broker, topics: TopicNames) -> None:
    torch.set_num_threads(1)  # three processes compute at the same time here
    catalog, users = tiny_catalog(), [f"user-{n}" for n in range(16)]
    alone = Engine.load(tiny_model(), catalog)
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(FaustWorker(broker, topics, engine="tiny")) for _ in range(2)]
        owned = await asyncio.gather(*(worker.ready(count=2) for worker in workers))
        assert sorted([*owned[0], *owned[1]]) == [0, 1, 2, 3]
        client = await stack.enter_async_context(RecommendClient(broker.connection, topics=topics))
        chance = random.Random(7)
        for _ in range(3):
            responses = await _a_round(client, alone, users, chance, list(catalog.item_ids))
            for user_id, response in responses.items():
                _assert_equal(response, alone, user_id)
        for worker in workers:
            assert await worker.stop() == 0


async def _a_round(
    client: RecommendClient, alone: Engine, users: list[str], chance: random.Random, item_ids: list[str]
) -> dict[str, RecommendResponse]:
    """Some more events of each user, to the workers and to the engine alone; then everybody asks."""
    positions = {}
    for user_id in users:
        items = chance.choices(item_ids, k=chance.randint(1, 5))
        alone.append(user_id, items)
        for item in items:
            positions[user_id] = await client.send_event(user_id, item)
    asked = [client.recommend(user, k=5, timeout=20, after=positions[user]) for user in users]
    return dict(zip(users, await asyncio.gather(*asked), strict=True))


def _assert_equal(response: RecommendResponse, alone: Engine, user_id: str) -> None:
    view = alone.history.view(user_id)
    assert view is not None
    assert (response.status, response.event_count) == (Status.OK, view.event_count)
    expected = alone.recommend(user_id, k=5)
    assert [item.score for item in response.items] == pytest.approx(
        [item.score for item in expected], abs=SCORE_TOLERANCE
    )
    worst = expected[-1].score
    clear = {item.item_id for item in expected if item.score > worst + SCORE_TOLERANCE}
    assert clear <= {item.item_id for item in response.items}


def test_the_command_names_a_port_in_use_and_leaves_nothing_where_it_ran(
    broker: Broker, topics: TopicNames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    monkeypatch.chdir(tmp_path)
    names = [f"--topic={role}={name}" for role, name in asdict(topics).items()]
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        options = ["--driver=faust", f"--web-port={port}", f"--group=group-{topics.events}", *names]
        shop = ["--model=model", "--catalog=catalog.parquet", "--cache-mib=8"]
        result = CliRunner().invoke(main, ["worker", "--broker", broker.bootstrap, *shop, *options])
    assert result.exit_code == 1
    said = f"Error: config: web host and port must be free to listen on, and 127.0.0.1:{port} is not: "
    assert said in result.output, result.exception
    assert {path.name for path in tmp_path.iterdir()} == {"model", "catalog.parquet"}


async def test_a_new_worker_knows_what_the_old_one_learnt(broker: Broker, topics: TopicNames) -> None:
    async with FaustWorker(broker, topics) as first, FaustWorker(broker, topics, waits=True) as second:
        await first.ready(count=4)
        async with RecommendClient(broker.connection, topics=topics) as client:
            for number in range(70):  # more than two sealed segments
                position = await client.send_event("user-1", f"item-{number}")
            before = await client.recommend("user-1", timeout=20, after=position)
            assert before.event_count == 70
            assert await first.stop() == 0
            second.go()
            await second.ready(count=4)
            after = await client.recommend("user-1", timeout=20)
            assert (after.event_count, after.event_offset) == (70, position.offset)
            assert after.items == before.items
            assert await second.stop() == 0


async def _views(broker: Broker, topics: TopicNames, partitions: int) -> str:
    """A topic of page views, made beside the recommender's."""
    await ensure_topics(broker.connection, topics, 4)
    await make_topics(broker, NewTopic(f"views-{topics.events}", partitions, 1))
    return f"views-{topics.events}"


async def _view(producer: AIOKafkaProducer, views: str, users: list[str], count: int) -> None:
    """Each user views so many pages; keyed by page."""
    for number in range(count):
        for user in users:
            page = f"item-{number}"
            await producer.send_and_wait(views, json.dumps({"visitor": user, "page": page}).encode(), page.encode())


async def test_page_views_of_any_key_become_events_of_their_users(broker: Broker, topics: TopicNames) -> None:
    views = await _views(broker, topics, 2)
    async with FaustWorker(broker, topics, sources=[views]) as worker:
        await worker.ready(count=4)
        producer = await broker.connection.start_producer()
        users = [f"user-{n}" for n in range(8)]
        await _view(producer, views, users, 5)
        await producer.send_and_wait(views, b'{"page": "item-1"}', b"nobody")
        for partition in range(2):
            await write_too_large(broker, views, partition)
        await _view(producer, views, users, 1)
        await producer.stop()
        async with Raw(broker, topics) as raw, RecommendClient(broker.connection, topics=topics) as client:
            assert (await raw.dead_letter("nobody"))["reason"] == "invalid_event"
            assert (await raw.dead_letter(None, views))["reason"] == "too_large"
            for _ in range(100):
                counts = {(await client.recommend(user, timeout=10)).event_count for user in users}
                if counts == {6}:
                    break
                await asyncio.sleep(0.1)
            assert counts == {6}
        assert await worker.stop() == 0


@pytest.fixture
def app(broker: Broker, tmp_path: Path) -> faust.App:
    return faust.App("test", broker=f"kafka://{broker.bootstrap}", web_enabled=False, datadir=tmp_path)


def _attached(app: faust.App, topics: TopicNames, sources: list[Any]) -> FaustDriver:
    config = StreamConfig(topics=topics)
    attach(app, engine=NullEngine(), config=config, events=sources, event=lambda _: None, repartition=True)
    return next(child for child in app._children if isinstance(child, FaustDriver))


async def test_an_app_does_not_start_without_a_topic_that_it_would_copy(
    broker: Broker, topics: TopicNames, app: faust.App
) -> None:
    """Faust would wait for it in silence, and not hear of it later."""
    driver = _attached(app, topics, [await _views(broker, topics, 2), "misspelt", app.channel()])
    with pytest.raises(
        TopologyError, match=r"^events must be topics that exist .*, and misspelt are not there: create"
    ):
        await driver.on_start()


async def test_what_the_app_and_its_other_recommenders_create_need_not_be_there(
    broker: Broker, topics: TopicNames, app: faust.App
) -> None:
    views, others = app.topic(f"views-{topics.events}", internal=True, partitions=3), own_topics()
    driver = _attached(app, topics, [views, others.events])
    attach(app, engine=NullEngine(), config=StreamConfig(topics=others))
    await driver._check_sources(broker.connection)
    await app.producer.stop()
    admin = broker.connection.admin()
    await admin.start()
    async with asyncio.timeout(30):
        while views.get_topic_name() not in (existing := await admin.list_topics()):  # noqa: ASYNC110  what is waited for knows of no event
            await asyncio.sleep(0.05)
    await admin.close()
    assert others.events not in existing


async def test_page_views_that_are_copied_twice_count_once(broker: Broker, topics: TopicNames) -> None:
    """A worker is killed when its copies are durable and no offset is committed; another copies all of them again."""
    views, users = await _views(broker, topics, 2), [f"user-{n}" for n in range(5)]
    producer = await broker.connection.start_producer()
    reader = broker.connection.consumer(auto_offset_reset="earliest")
    await reader.start()
    reader.assign([TopicPartition(topics.events, number) for number in range(4)])

    async def copied(count: int) -> None:
        async with asyncio.timeout(60):
            while count > 0:
                count -= sum(map(len, (await reader.getmany(timeout_ms=200)).values()))

    async with (
        FaustWorker(broker, topics, sources=[views], commits=False) as first,
        FaustWorker(broker, topics, sources=[views], waits=True) as second,
        RecommendClient(broker.connection, topics=topics) as client,
    ):
        await first.ready(count=4)
        await _view(producer, views, users, 40)
        await copied(200)
        for user in users:  # their histories hold some of it, or all
            await client.recommend(user, timeout=20)
        await first.kill()
        second.go()
        await second.ready(count=4)
        await copied(200)
        for user in users:
            position = await client.send_event(user, "one more")
            assert (await client.recommend(user, timeout=20, after=position)).event_count == 41
        assert await second.stop() == 0
    await producer.stop()
    await reader.stop()


async def test_a_worker_that_is_told_to_stop_answers_what_it_took(broker: Broker, topics: TopicNames) -> None:
    async with (
        FaustWorker(broker, topics, engine="slow") as worker,
        FaustWorker(broker, topics, waits=True) as following,
    ):
        await worker.ready(count=4)
        async with RecommendClient(broker.connection, topics=topics) as client:
            asked = [asyncio.create_task(client.recommend(f"user-{n}", timeout=60)) for n in range(20)]
            await worker.answering()
            assert await worker.stop() == 0
            await until(lambda: any(task.done() for task in asked))
            assert all(task.exception() is None for task in asked if task.done())
            following.go()  # it answers those that the first had not taken
            await asyncio.gather(*asked)
