"""The Faust driver without a broker: its agents in Faust's test context, acks in offset order, assignments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP
from mode import Service

from tests.stream.agents import PARTITION, USER, put
from tests.stream.waiting import settle, until
from xgr_stream.config import EngineConfig, StreamConfig
from xgr_stream.errors import TopologyError
from xgr_stream.metrics import Metrics
from xgr_stream.stream import codec, faust_driver
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.recommender import Recommender
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.setup import Setup
from xgr_stream.testing import NullEngine


@pytest.fixture
async def driver(app: faust.App, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FaustDriver]:
    """A driver whose runtime was never started: nothing is sent, and the test plays the broker. Records do not wait
    for each other."""
    monkeypatch.setattr(faust_driver, "EVENTS_WAIT_S", 0.0)
    monkeypatch.setattr(faust_driver, "REQUESTS_WAIT_S", 0.0)
    config, engine = StreamConfig(partitioner="any"), NullEngine()

    def make_setup() -> Setup:
        return Setup(engine, Connection("127.0.0.1:1"), "test", config, EngineConfig(), Metrics())

    recommender = Recommender(config, Metrics())
    driver = FaustDriver(app, recommender, make_setup, engine.history)
    driver.runtime = Runtime(
        make_setup(), on_progress=driver._acknowledge, on_failure=_raise, end_offset=driver._end_offset
    )
    driver.runtime.num_partitions = 4
    driver.runtime._device.start()
    driver.runtime.processor.assign({PARTITION}, 4)
    driver.runtime.processor.restored(PARTITION)
    yield driver
    driver.runtime._device.stop(1.0)


def _raise(error: BaseException) -> None:
    raise error


def event_bytes(item_id: str = "item-1") -> bytes:
    return codec.encode({"v": 1, "item_id": item_id}, "msgpack")


def acknowledge(driver: FaustDriver, outputs: list[Any]) -> None:
    """What the publisher does once the broker has all of an output."""
    assert driver.runtime is not None
    for output in outputs:
        driver.runtime.processor.acknowledged(output)
        if output.topic is not None:
            driver._acknowledge(output.topic, output.partition.number)


async def test_events_are_acknowledged_in_offset_order(driver: FaustDriver) -> None:
    processor = driver.runtime.processor
    async with driver.events.test_context() as agent:
        events = [await put(agent, event_bytes(f"item-{n}")) for n in range(4)]
        outputs = processor.poll()
        assert len(outputs) == 4
        acknowledge(driver, outputs[2:])
        assert [event.acked for event in events] == [[], [], [], []]
        acknowledge(driver, outputs[:1])
        assert [event.acked for event in events] == [[0], [], [], []]
        acknowledge(driver, outputs[1:2])
        assert [event.acked for event in events] == [[0], [1], [2], [3]]


async def test_records_that_come_in_a_row_are_taken_together(
    driver: FaustDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first at once; events wait for each other, and go with the next request, before it."""
    monkeypatch.setattr(faust_driver, "EVENTS_WAIT_S", 3_600.0)
    took: list[list[str]] = []
    take = driver.take

    def watched(events: Iterable[Any]) -> None:
        listed = list(events)
        took.append([event.message.topic for event in listed])
        take(listed)

    monkeypatch.setattr(driver, "take", watched)
    topics = driver._recommender.config.topics
    request = codec.encode({"v": 1, "request_id": "one", "k": 2, "timeout_ms": 60_000}, "msgpack")
    async with driver.events.test_context() as events, driver.requests.test_context() as requests:
        await put(events, event_bytes())
        assert [len(topics) for topics in took] == [1]
        for _ in range(3):
            await put(events, event_bytes())
        assert len(took) == 1
        await put(requests, request)
        assert took[1:] == [[topics.events] * 3 + [topics.requests]]
        for _ in range(faust_driver.MAX_BATCH):
            await put(events, event_bytes())
        assert took[2:] == [[topics.events] * faust_driver.MAX_BATCH]
        await put(events, event_bytes())
        await driver._drain()
        assert took[3:] == [[topics.events]]
        await put(events, event_bytes())
        assert not any(driver._gathered.values())


async def test_an_agent_that_rests_goes_on_when_it_may_whatever_has_changed(driver: FaustDriver) -> None:
    """What a rebalance takes away is given up, not acknowledged."""
    publisher: Any = SimpleNamespace(unpublished=lambda topic: 10_000, unpublished_bytes=0)
    driver.runtime._publisher = publisher
    async with driver.events.test_context() as agent:
        await put(agent, event_bytes())
        await put(agent, event_bytes())
        assert len(driver.runtime.processor.poll()) == 1
        publisher.unpublished = lambda topic: 0
        await until(lambda: len(driver.runtime.processor.poll()) == 1)


async def test_a_worker_is_not_ready_from_when_it_begins_to_shut_down(driver: FaustDriver) -> None:
    driver.runtime.assign([])
    assert driver.runtime.readiness()["ready"]
    await driver._drain()
    assert not driver.runtime.readiness()["ready"]
    assert driver.runtime.readiness()["shutting_down"]


async def test_nothing_that_a_record_holds_escapes_the_agent(driver: FaustDriver) -> None:
    processor = driver.runtime.processor
    async with driver.events.test_context() as agent:
        for value in (None, b"", b"\xc1", b"{", codec.encode({"v": 1}, "json"), event_bytes()):
            await put(agent, value)
        outputs = processor.poll()
        dead_letters = driver._recommender.config.topics.dead_letters
        assert [output.produces[0].topic == dead_letters for output in outputs] == [True] * 4 + [False]
        acknowledge(driver, outputs)
    assert processor.committable(driver._recommender.config.topics.events, PARTITION) == 6


async def test_an_error_in_processing_crashes_the_app_and_nothing_is_taken_after_it(
    driver: FaustDriver, app: faust.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a timer, where nobody would hear of it."""
    crashed: list[BaseException] = []
    error, process = MemoryError("no room"), driver.runtime.process

    async def crash(reason: BaseException) -> None:
        crashed.append(reason)

    def fails_once(records: Iterable[Any]) -> None:
        monkeypatch.setattr(driver.runtime, "process", process)
        raise error

    monkeypatch.setattr(app, "crash", crash)
    monkeypatch.setattr(driver.runtime, "process", fails_once)
    monkeypatch.setattr(driver.runtime, "_on_failure", driver._crash_app)
    async with driver.events.test_context() as agent:
        await put(agent, event_bytes())
        assert not any(driver._gathered.values())
        await settle()
        assert (crashed, driver.runtime.failure) == ([error], error)
        assert not driver.runtime.readiness()["ready"]
        later = await put(agent, event_bytes())
        assert not any(driver._gathered.values())
        acknowledge(driver, driver.runtime.processor.poll())
        assert later.acked == []
    events = driver._recommender.config.topics.events
    assert driver.runtime.processor.committable(events, PARTITION) is None


async def test_requests_are_answered_and_then_acknowledged(driver: FaustDriver) -> None:
    processor = driver.runtime.processor
    value = codec.encode({"v": 1, "request_id": "one", "k": 2, "timeout_ms": 60_000}, "msgpack")
    async with driver.requests.test_context() as agent:
        event = await put(agent, value)
        outputs: list[Any] = []
        async with asyncio.timeout(10):
            while not (outputs := processor.poll()):  # noqa: ASYNC110  the device's thread knows of no event
                await asyncio.sleep(0.005)
        (output,) = outputs
        response = codec.decode(output.produces[0].value, 1 << 20)
        assert (response["request_id"], len(response["items"])) == ("one", 2)
        assert event.acked == []
        acknowledge(driver, [output])
        assert event.acked == [0]


async def test_an_event_that_was_taken_before_is_done_at_once(driver: FaustDriver) -> None:
    async with driver.events.test_context() as agent:
        first = await put(agent, event_bytes())
        acknowledge(driver, driver.runtime.processor.poll())
        agent.sent_offset = 0
        again = await put(agent, event_bytes())
        assert (first.acked, again.acked) == ([0], [0])
        assert driver.runtime.setup.engine.history.num_events == 1


async def test_events_that_come_before_their_assignment_are_held(driver: FaustDriver) -> None:
    topics, processor = driver._recommender.config.topics, driver.runtime.processor
    ours = {TP(topics.events, PARTITION), TP(topics.requests, PARTITION)}
    driver.runtime._recovery = NoRecovery()
    await driver._on_revoked(None, ours)
    async with driver.events.test_context() as agent:
        event = await put(agent, event_bytes())
        assert processor.poll() == []
        await driver._on_assigned(None, ours)
        processor.restored(PARTITION)
        acknowledge(driver, processor.poll())
        assert event.acked == [0]


async def test_events_of_an_earlier_generation_are_left_to_come_again(driver: FaustDriver, app: faust.App) -> None:
    async with driver.events.test_context() as agent:
        event = await agent.put(key=USER, value=event_bytes(), partition=PARTITION, wait=False)
        app.consumer_generation_id += 1
        driver.take([event])
    assert driver.runtime.processor.poll() == []


async def test_what_is_revoked_is_not_acknowledged(driver: FaustDriver) -> None:
    topics = driver._recommender.config.topics
    async with driver.events.test_context() as agent:
        event = await put(agent, event_bytes())
        outputs = driver.runtime.processor.poll()
        await driver._on_revoked(None, {TP(topics.events, PARTITION), TP(topics.requests, PARTITION)})
        acknowledge(driver, outputs)
        assert event.acked == []


async def test_what_is_revoked_does_not_rest_any_more(driver: FaustDriver) -> None:
    """Nobody asks about it again, and the gauge would show it for ever."""
    topics = driver._recommender.config.topics
    events, requests = TP(topics.events, PARTITION), TP(topics.requests, PARTITION)
    publisher: Any = SimpleNamespace(unpublished=lambda topic: 10_000, unpublished_bytes=0)
    driver.runtime._publisher = publisher
    assert driver._notes_whether_it_must_rest(*events)
    assert driver.runtime.readiness()["resting"][events.topic] == 1
    await driver._on_revoked(None, {events, requests})
    assert driver.runtime.readiness()["resting"][events.topic] == 0


async def test_an_assignment_that_splits_a_partition_fails_the_worker(driver: FaustDriver) -> None:
    topics = driver._recommender.config.topics
    with pytest.raises(TopologyError, match="table_standby_replicas"):
        await driver._on_assigned(None, {TP(topics.events, 1), TP(topics.requests, 2)})


class NoRecovery:
    async def run(self, number: int) -> None: ...


async def test_a_request_of_another_worker_s_user_may_be_as_large_as_one_of_ours(
    driver: FaustDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, object] = {}

    class Client:
        def __init__(self, _: object, **options: object) -> None:
            made.update(options)

        async def start(self) -> None: ...

    monkeypatch.setattr("xgr_stream.stream.recommender.RecommendClient", Client)
    recommender = driver._recommender
    recommender.config = replace(recommender.config, max_message_bytes=4 << 20)
    assert driver.runtime is not None
    recommender.bind(driver.runtime)
    await recommender._started_client(driver.runtime, asyncio.get_running_loop().time() + 10)
    assert made["max_message_bytes"] == 4 << 20


async def test_all_actors_may_be_started_again_at_once(driver: FaustDriver) -> None:
    """As a rebalance has it. mode's own supervisor ends the process at the second within 10 ms."""
    again: list[object] = []

    async def replacement(service: object, index: int) -> Any:
        again.append(service)
        return Service.from_awaitable(asyncio.sleep(0))

    supervisor = driver.events._new_supervisor()
    supervisor.replacement = replacement
    actors: list[Any] = [Service.from_awaitable(asyncio.sleep(0)) for _ in range(50)]
    supervisor.add(*actors)
    await supervisor.restart_services(actors)
    assert again == actors
