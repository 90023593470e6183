"""The Faust driver without a broker: its agents in Faust's test context, acks in offset order, assignments."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import Any

import faust
import pytest
from aiokafka.errors import KafkaTimeoutError, OutOfOrderSequenceNumber
from faust.types import TP

from tests.stream.batch import Producer
from xgr_stream.config import EngineConfig, StreamConfig, TopicNames
from xgr_stream.errors import ConfigError, TopologyError
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.versions import Versions
from xgr_stream.stream import codec, faust_driver, repartition
from xgr_stream.stream.attachment import attach
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.faust_driver import FaustDriver
from xgr_stream.stream.recommender import Recommender
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.setup import Setup
from xgr_stream.stream.topology import all_topics
from xgr_stream.testing import NullEngine
from xgr_stream.types import UserEvent

USER = b"user-1"
PARTITION = 0
"""Where the tests that accept any placement put everything."""


@pytest.fixture
def app(tmp_path: Any) -> faust.App:
    return faust.App("test", broker="kafka://127.0.0.1:1", web_enabled=False, datadir=tmp_path, autodiscover=False)


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


async def put(agent: Any, value: bytes | None) -> Any:
    """Give an agent one record, and let it work."""
    event = await agent.put(key=USER, value=value, partition=PARTITION, wait=False)
    event.acked = _count_acks(event)
    for _ in range(20):
        await asyncio.sleep(0)
    return event


def _count_acks(event: Any) -> list[int]:
    acks: list[int] = []
    event.ack = lambda: acks.append(event.message.offset)
    return acks


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


async def test_an_assignment_that_splits_a_partition_fails_the_worker(driver: FaustDriver) -> None:
    topics = driver._recommender.config.topics
    with pytest.raises(TopologyError, match="table_standby_replicas"):
        await driver._on_assigned(None, {TP(topics.events, 1), TP(topics.requests, 2)})


class NoRecovery:
    async def run(self, number: int) -> None: ...


# attach


def test_attach_needs_something_to_serve(app: faust.App) -> None:
    with pytest.raises(ConfigError, match="model and catalog"):
        attach(app, model="models/shop")


def test_attach_refuses_fausts_own_transactions() -> None:
    app = faust.App("twice", broker="kafka://localhost:9092", processing_guarantee="exactly_once")
    with pytest.raises(ConfigError, match="processing_guarantee must be at_least_once, not exactly_once"):
        attach(app, engine=NullEngine())


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
    await recommender._started_client(driver.runtime)
    assert made["max_message_bytes"] == 4 << 20


@pytest.mark.parametrize("source", [lambda app: app.channel(), lambda app: app.topic("a", "b"), lambda app: ["a", "b"]])
def test_attach_refuses_several_sources_without_repartition(app: faust.App, source: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="repartition=True"):
        attach(app, engine=NullEngine(), events=source(app))


def test_attach_takes_the_applications_own_topic(app: faust.App) -> None:
    views = app.topic("page-views")
    recommender = attach(app, engine=NullEngine(), events=views, event=lambda view: None)
    assert recommender.config.topics == TopicNames(events="page-views")


def test_attach_twice_needs_topics_of_its_own_for_each(app: faust.App) -> None:
    """One of two agents of a topic would take the other's place: its recommender would hear of nothing."""
    attach(app, engine=NullEngine())
    agents = dict(app.agents)
    with pytest.raises(TopologyError, match="rec-requests, rec-responses, user-events, xgr-history-changelog are"):
        attach(app, engine=NullEngine())
    config = StreamConfig(topics=TopicNames(requests="asked", responses="answered"))
    with pytest.raises(TopologyError, match="and xgr-history-changelog are"):
        attach(app, engine=NullEngine(), events="page-views", config=config)
    assert dict(app.agents) == agents


def test_attach_twice_repartitions_for_each(app: faust.App) -> None:
    for topics in (TopicNames(), TopicNames("views", "asked", "answered", changelog="histories")):
        config = StreamConfig(topics=topics)
        attach(app, engine=NullEngine(), events="page-views", event=to_event, repartition=True, config=config)
    assert {"xgr-repartition-user-events-0", "xgr-repartition-views-0"} <= set(app.agents)


OTHER_TOPICS = TopicNames("views", "asked", "answered", changelog="histories")


@pytest.mark.parametrize("source", all_topics(TopicNames()))
@pytest.mark.parametrize("as_topic", [False, True])
def test_a_recommender_is_not_fed_from_its_own_topics(app: faust.App, source: str, as_topic: bool) -> None:
    """Each copy would be copied again, for ever."""
    sources = ["page-views", app.topic(source) if as_topic else source]
    with pytest.raises(TopologyError, match=rf"^events must be .* repartition=True, not {source}, which"):
        attach(app, engine=NullEngine(), events=sources, event=to_event, repartition=True)
    if source != "user-events":
        with pytest.raises(TopologyError, match=rf"^events must be .* nothing else, not '{source}'"):
            attach(app, engine=NullEngine(), events=sources[1])
    assert not any(isinstance(child, FaustDriver) for child in app._children)


def test_another_recommenders_events_may_be_repartitioned(app: faust.App) -> None:
    attach(app, engine=NullEngine())
    config = StreamConfig(topics=OTHER_TOPICS)
    attach(app, engine=NullEngine(), events="user-events", event=to_event, repartition=True, config=config)


@pytest.mark.parametrize("again", [lambda engine: engine, Versions, lambda engine: NullEngine(history=engine.history)])
def test_an_engine_and_a_history_are_one_recommenders_alone(app: faust.App, again: Callable[..., Any]) -> None:
    """Two topics' offsets in one history: the events of one would be taken for what the other's had told already."""
    engine = NullEngine()
    attach(app, engine=engine)
    with pytest.raises(ConfigError, match=r"^engine must be this recommender's alone, not "):
        attach(app, engine=again(engine), config=StreamConfig(topics=OTHER_TOPICS))
    attach(app, engine=NullEngine(), config=StreamConfig(topics=OTHER_TOPICS))


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"event": 5}, "event must be a function from a value to UserEvent or None, not 5"),
        ({"events": 5}, "events must be a topic's name, a Faust topic or channel, or a list of some, not 5"),
        ({"events": ["a", 5]}, r"events must be .*, not \['a', 5\]"),
        ({"events": "a b"}, "events must be .*, not 'a b'"),
        ({"events": []}, r"events must be .*, not \[\]"),
        ({"repartition": True, "event": len}, r"events must be given with repartition=True.*, not None"),
        ({"metrics": 3}, r"metrics must be Metrics\(\.\.\.\) or None, not 3"),
        ({"model": "models/shop"}, "engine must be None with a model or a catalog.*, not <"),
        ({"catalog": "catalog.parquet"}, "engine must be None with a model or a catalog.*, not <"),
        ({"engine": 5}, "engine must be an Engine, or Versions of some, not 5"),
    ],
)
def test_attach_names_an_argument_that_cannot_be(app: faust.App, arguments: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{refusal}"):
        attach(app, **{"engine": NullEngine(), **arguments})


@pytest.mark.parametrize("source", [lambda app: app.topic(pattern="page-.*"), lambda app: app.topic("a", "b")])
def test_repartition_reads_topics_of_one_name_each(app: faust.App, source: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"^events must be topics of one name each, not <"):
        attach(app, engine=NullEngine(), events=source(app), event=to_event, repartition=True)


async def test_the_recommender_is_deaf_until_the_app_runs(app: faust.App) -> None:
    recommender = attach(app, engine=NullEngine())
    with pytest.raises(RuntimeError, match="must have started"):
        await recommender.recommend("user-1")


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
    producer.fate += [None, error, None, None]
    runtime = FakeRuntime(producer)
    agent = repartitioning(app, runtime)
    async with agent.test_context() as converting:
        values = [PageView(user="user-1", item=f"item-{n}").dumps(serializer="json") for n in range(5)]
        events = [await converting.put(key=USER, value=value, partition=PARTITION, wait=False) for value in values]
        acked = [_count_acks(event) for event in events]
        async with asyncio.timeout(5):
            while not all(acked):  # noqa: ASYNC110  the agent knows of no event
                await asyncio.sleep(0.005)
    written = [[codec.decode(value, 1_000)["item_id"] for value in values] for values in producer.batches]
    assert written == [["item-0", "item-1"], ["item-2", "item-3"], ["item-2", "item-3"], ["item-4"]]
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


def repartitioning(app: faust.App, runtime: FakeRuntime, config: StreamConfig | None = None) -> Any:
    """The agent that converts page views, in an attached app that writes with this runtime."""
    views = app.topic("page-views", value_type=PageView)
    attach(app, engine=NullEngine(), events=views, event=to_event, repartition=True, config=config)
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

    async def renew_producer(self, spoilt: Producer) -> None:
        self.renewed = spoilt is self.producer
