"""An application's own events, converted and written into the recommender's topic."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka.errors import KafkaTimeoutError, OutOfOrderSequenceNumber, TopicAuthorizationFailedError
from faust.types import TP

from tests.stream.agents import put
from tests.stream.batch import Producer
from xgr_stream.config import StreamConfig
from xgr_stream.errors import InvalidEvent
from xgr_stream.metrics import Metrics
from xgr_stream.stream import codec, repartition
from xgr_stream.stream.attachment import attach
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.source_header import source_of
from xgr_stream.testing import NullEngine
from xgr_stream.types import UserEvent


class PageView(faust.Record):
    user: str
    item: str | None


def to_event(view: PageView) -> UserEvent | None:
    return None if view.item is None else UserEvent(view.user, view.item)


async def test_repartition_converts_and_then_acknowledges(app: faust.App) -> None:
    producer = Producer()
    producer.fate += [None, None]
    agent = repartitioning(app, FakeRuntime(producer))
    async with agent.test_context() as converting:
        views = [PageView(user="user-1", item="item-1"), PageView(user="user-2", item=None)]
        events = [await put(converting, view.dumps(serializer="json")) for view in views]
        broken = await put(converting, b"no page view")
        async with asyncio.timeout(5):
            while not broken.acked:  # noqa: ASYNC110  the agent knows of no event
                await asyncio.sleep(0.005)
        assert [event.acked for event in [*events, broken]] == [[0], [1], [2]]
    events, letters = sorted(producer.sent, reverse=True)
    assert (events[0], letters[0]) == ("user-events", "rec-dead-letters")
    assert codec.decode(events[1][0], 1_000) == {"v": 1, "user_id": "user-1", "item_id": "item-1"}
    assert codec.decode(letters[1][0], 1_000)["reason"] == "invalid_event"


@pytest.mark.parametrize("error", [KafkaTimeoutError(), OutOfOrderSequenceNumber()])
async def test_what_of_a_repartition_fails_is_written_again_and_nothing_else(
    app: faust.App, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Before anything behind it of its partition; by another producer, if the broker takes no more from the first."""
    monkeypatch.setattr(repartition, "RETRY_AFTER_S", 0.0)
    producer = Producer()
    producer.room = 2
    runtime = FakeRuntime(producer)
    agent = repartitioning(app, runtime)
    async with agent.test_context() as converting:
        values = [PageView(user="user-1", item=f"item-{n}").dumps(serializer="json") for n in range(5)]
        events = [await put(converting, value) for value in values]
        producer.fate += [error, None, None]
        producer.futures[0].set_result(None)  # meanwhile the others came
        async with asyncio.timeout(5):
            while not all(event.acked for event in events):  # noqa: ASYNC110  the agent knows of no event
                await asyncio.sleep(0.005)
    written = [[codec.decode(value, 1_000)["item_id"] for value in values] for values in producer.batches]
    assert written == [["item-0"], ["item-1", "item-2"], ["item-1", "item-2"], ["item-3", "item-4"]]
    assert runtime.renewed == isinstance(error, OutOfOrderSequenceNumber)


async def test_a_repartition_places_keys_as_the_configuration_says(app: faust.App) -> None:
    """Where the recommender expects them: elsewhere each of them would be refused."""
    producer = Producer()
    producer.fate += [None] * 3
    agent = repartitioning(app, FakeRuntime(producer), StreamConfig(partitioner="crc32"))
    users = ["user-1", "user-2", "user-4"]
    async with agent.test_context() as converting:
        for user in users:
            await put(converting, PageView(user=user, item="item-1").dumps(serializer="json"))
    written = [codec.decode(value, 1_000)["user_id"] for (value,) in producer.batches]
    assert (written, producer.partitions) == (users, [zlib.crc32(user.encode()) % 4 for user in users])


async def test_copies_of_a_topics_records_name_them_and_those_of_a_channels_name_none(app: faust.App) -> None:
    producer = Producer()
    producer.fate += [None] * 2
    views = app.topic("page-views", value_type=PageView)
    made = app.channel(value_type=PageView)
    attach(app, engine=NullEngine(), events=[views, made], event=to_event, repartition=True)
    driver = next(child for child in app._children if isinstance(child, FaustDriver))
    driver.runtime = FakeRuntime(producer)  # type: ignore[assignment]
    view = PageView(user="user-1", item="item-1")
    async with app.agents["xgr-repartition-user-events-0"].test_context() as converting:
        event = await put(converting, view.dumps(serializer="json"))
        message = event.message
    async with app.agents["xgr-repartition-user-events-1"].test_context() as converting:
        await put(converting, view)
    [of_topic, of_channel] = producer.headers
    assert source_of(tuple(of_topic)) == (message.topic, message.partition, message.offset)
    assert of_channel == []


async def test_a_gauge_tells_how_far_copies_are_behind(app: faust.App, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where reading began; what is with another worker counts there."""
    producer = Producer()
    runtime = FakeRuntime(producer)
    agent = repartitioning(app, runtime)
    driver = next(child for child in app._children if isinstance(child, FaustDriver))
    monkeypatch.setattr(driver, "_end_offset", lambda topic, partition: 5)

    def behind() -> float | None:
        driver.report()
        return runtime.setup.metrics.registry.get_sample_value("xgr_source_behind", {"topic": "page-views"})

    view = PageView(user="user-1", item="item-1").dumps(serializer="json")
    async with agent.test_context() as converting:
        assert behind() == 0
        await put(converting, view)
        assert behind() == 5
        producer.futures[0].set_result(None)
        for _ in range(20):
            await asyncio.sleep(0)
        assert behind() == 4
        await driver._on_revoked(None, {TP("page-views", 0)})
        assert behind() == 0


def refused() -> None:
    raise InvalidEvent("item must be sold, not '\ud800'")


@pytest.mark.parametrize(
    ("function", "why"),
    [(lambda: ("user-1", "item-1"), "not tuple"), (lambda: True, "not bool"), (refused, "not '\\ud800'")],
)
async def test_whatever_converts_to_no_event_becomes_a_dead_letter(
    app: faust.App, function: Callable[[], Any], why: str
) -> None:
    producer = Producer()
    producer.fate += [None]
    runtime = FakeRuntime(producer)
    agent = repartitioning(app, runtime, event=lambda _: function())
    async with agent.test_context() as converting:
        event = await put(converting, PageView(user="user-1", item="item-1").dumps(serializer="json"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (event.acked, runtime.failure) == ([0], None)
    [(topic, [letter])] = producer.sent
    assert topic == "rec-dead-letters"
    assert why in codec.decode(letter, 1_000)["message"]


async def test_an_event_that_there_is_no_memory_for_ends_the_worker(app: faust.App) -> None:
    """It is sound: it is not put aside."""
    producer, error = Producer(), MemoryError()

    def event(_: object) -> UserEvent:
        raise error

    runtime = FakeRuntime(producer)
    agent = repartitioning(app, runtime, event=event)
    async with agent.test_context() as converting:
        event_put = await put(converting, PageView(user="user-1", item="item-1").dumps(serializer="json"))
        assert (runtime.failure, producer.sent, event_put.acked) == (error, [], [])


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), TopicAuthorizationFailedError("a mistake")])
async def test_nothing_is_written_behind_what_fails_for_good(app: faust.App, error: Exception) -> None:
    """The worker ends instead: later copies would make the missing ones pass for written."""
    producer = Producer()
    producer.fate += [error, None]
    runtime = FakeRuntime(producer)
    agent = repartitioning(app, runtime)
    async with agent.test_context() as converting:
        for number in range(2):
            await put(converting, PageView(user="user-1", item=f"item-{number}").dumps(serializer="json"))
        assert runtime.failure is error
        assert len(producer.batches) == 1


def repartitioning(
    app: faust.App,
    runtime: FakeRuntime,
    config: StreamConfig | None = None,
    event: Callable[[Any], UserEvent | None] = to_event,
) -> Any:
    """The agent that converts page views, in an attached app that writes with this runtime."""
    views = app.topic("page-views", value_type=PageView)
    attach(app, engine=NullEngine(), events=views, event=event, repartition=True, config=config)
    driver = next(child for child in app._children if isinstance(child, FaustDriver))
    driver.runtime = runtime  # type: ignore[assignment]
    return app.agents["xgr-repartition-user-events-0"]


class FakeRuntime:
    """Just a producer."""

    num_partitions = 4
    started = True

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.renewed = False
        self.failure: BaseException | None = None
        self.setup = SimpleNamespace(metrics=Metrics())

    def fail(self, error: BaseException) -> None:
        self.failure = error

    def revoke(self, revoked: object) -> None: ...

    async def renew_producer(self, spoilt: Producer) -> None:
        self.renewed = spoilt is self.producer
