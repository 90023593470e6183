"""What rests when more is taken than is made durable: events first, requests only for their answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from xgr_stream.config import EngineConfig, StreamConfig
from xgr_stream.errors import ConfigError, DeviceLost
from xgr_stream.metrics import Metrics
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.group_member import Membership
from xgr_stream.stream.health import Pages
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.records import Record
from xgr_stream.stream.runtime import Runtime
from xgr_stream.stream.setup import Setup
from xgr_stream.testing import NullEngine

EVENTS, REQUESTS = "user-events", "rec-requests"


class Publisher:
    """So many answers and bytes are not durable."""

    answers = 0
    unpublished_bytes = 0

    def unpublished(self, topic: str) -> int:
        return self.answers if topic == REQUESTS else 0


def make_setup(**config: Any) -> Setup:
    stream = StreamConfig(partitioner="any", **config)
    return Setup(NullEngine(), Connection("127.0.0.1:1"), "test", stream, EngineConfig(), Metrics())


def runtime_of(publisher: Publisher, **config: Any) -> Runtime:
    runtime = Runtime(
        make_setup(**config), on_progress=lambda *_: None, on_failure=lambda _: None, end_offset=lambda *_: None
    )
    runtime._publisher = publisher  # type: ignore[assignment]
    runtime.processor.assign({0}, 1)
    runtime.processor.restored(0)
    return runtime


def event(offset: int) -> Record:
    return Record(EVENTS, 0, offset, b"u", b'{"v": 1, "item_id": "item-1"}', 0)


def test_events_rest_while_too_many_are_not_durable() -> None:
    runtime = runtime_of(Publisher(), max_open_events=3)
    runtime.process([event(0), event(1)])
    assert not runtime.must_rest(EVENTS, 0)
    runtime.process([event(2)])
    assert runtime.must_rest(EVENTS, 0)
    assert not runtime.must_rest(REQUESTS, 0)
    for output in runtime.processor.poll():
        runtime.processor.acknowledged(output)
    assert not runtime.must_rest(EVENTS, 0)


@pytest.mark.parametrize(
    ("what", "amount", "events_rest", "requests_rest"),
    [
        ("answers", 4, False, False),
        ("answers", 5, True, False),
        ("answers", 10, True, True),
        ("unpublished_bytes", 499, False, False),
        ("unpublished_bytes", 500, True, False),
        ("unpublished_bytes", 1000, True, True),
    ],
)
def test_what_piles_up_holds_back_events_first(what: str, amount: int, events_rest: bool, requests_rest: bool) -> None:
    publisher = Publisher()
    setattr(publisher, what, amount)
    runtime = runtime_of(publisher, max_unpublished_answers=10, max_waiting_bytes=1000)
    assert runtime.must_rest(EVENTS, 0) is events_rest
    assert runtime.must_rest(REQUESTS, 0) is requests_rest


def test_events_that_wait_for_their_history_are_bounded_by_their_bytes() -> None:
    """Those of partitions that have theirs go on: nobody knows how long another's takes."""
    runtime = runtime_of(Publisher(), max_waiting_bytes=100)
    assert runtime.must_rest(EVENTS, 1)
    assert runtime.must_rest(REQUESTS, 1)
    runtime.processor.assign({1}, 1)
    assert not runtime.must_rest(EVENTS, 1)
    runtime.process([event(0)._replace(partition=1, value=bytes(50))])
    assert runtime.must_rest(EVENTS, 1)
    assert not runtime.must_rest(EVENTS, 0)
    runtime.processor.assign({2}, 1)
    assert runtime.must_rest(EVENTS, 2)
    assert not runtime.must_rest(REQUESTS, 1)
    runtime.processor.restored(1)
    runtime.processor.poll()
    assert not runtime.must_rest(EVENTS, 1)
    runtime.process([event(1)._replace(partition=1, value=bytes(50))])
    assert not runtime.must_rest(EVENTS, 1)


def test_bounds_are_checked() -> None:
    for name in ("max_open_events", "max_unpublished_answers", "max_waiting_bytes"):
        with pytest.raises(ConfigError, match=name):
            StreamConfig(**{name: 0})


class Consumer:
    """Two partitions of each topic, and which of them are paused."""

    def __init__(self) -> None:
        self._paused: set[TopicPartition] = set()

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(topic, number) for topic in (EVENTS, REQUESTS) for number in (0, 1)}

    def paused(self) -> set[TopicPartition]:
        return set(self._paused)

    def pause(self, *partitions: TopicPartition) -> None:
        self._paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self._paused -= set(partitions)


@pytest.fixture
async def driver() -> KafkaDriver:
    driver = KafkaDriver(make_setup(max_open_events=2, max_unpublished_answers=10))
    driver._consumer = Consumer()
    driver.runtime._publisher = Publisher()  # type: ignore[assignment]
    driver.runtime.processor.assign({0, 1}, 2)
    for number in (0, 1):
        driver.runtime.processor.restored(number)
    return driver


def resting(driver: KafkaDriver) -> dict[str, float | None]:
    registry = driver.runtime.setup.metrics.registry
    return {
        topic: registry.get_sample_value("xgr_resting_partitions", {"topic": topic}) for topic in (EVENTS, REQUESTS)
    }


async def test_the_driver_pauses_and_resumes_partitions_and_says_so(driver: KafkaDriver) -> None:
    driver.runtime.process([event(0), event(1)])
    driver._rest_and_resume()
    assert driver._consumer.paused() == {TopicPartition(EVENTS, 0)}
    assert resting(driver) == {EVENTS: 1, REQUESTS: 0}
    assert driver.runtime.readiness()["resting"] == {EVENTS: 1, REQUESTS: 0}
    driver.runtime._publisher.answers = 10  # type: ignore[union-attr]
    driver._rest_and_resume()
    assert len(driver._consumer.paused()) == 4
    driver.runtime._publisher.answers = 0  # type: ignore[union-attr]
    for output in driver.runtime.processor.poll():
        driver.runtime.processor.acknowledged(output)
    driver._rest_and_resume()
    assert driver._consumer.paused() == set()
    assert resting(driver) == {EVENTS: 0, REQUESTS: 0}


async def test_nothing_rests_after_a_rebalance(driver: KafkaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka reads all of a new assignment, whatever was paused of the one before."""
    driver.runtime.process([event(0), event(1)])
    driver._rest_and_resume()
    assert resting(driver) == {EVENTS: 1, REQUESTS: 0}
    driver._consumer = Consumer()
    monkeypatch.setattr("xgr_stream.stream.kafka_driver.membership", lambda _: Membership("member", 1))
    monkeypatch.setattr(driver.runtime, "revoke", lambda _: None)
    monkeypatch.setattr(driver.runtime, "assign", lambda _: None)
    await driver.assigned(driver._consumer.assignment())
    assert resting(driver) == {EVENTS: 0, REQUESTS: 0}


async def test_what_was_fetched_before_a_rebalance_is_let_go(
    driver: KafkaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes again from the committed offset on; taken now, it would hide what lies before it."""
    taken: list[int] = []

    def process(records: Any) -> None:
        taken.extend(record.offset for record in records)
        driver._rebalances += 1

    monkeypatch.setattr(driver.runtime, "process", process)
    messages = [
        SimpleNamespace(topic=EVENTS, partition=0, offset=offset, key=b"u", value=b"", timestamp=0, headers=())
        for offset in range(250)
    ]
    await driver._process({TopicPartition(EVENTS, 0): messages})
    assert taken == list(range(100))


async def test_a_lost_device_makes_the_worker_ill_and_its_answers_are_still_published(driver: KafkaDriver) -> None:
    runtime = driver.runtime
    pages = Pages(lambda: runtime, runtime.setup.metrics)
    assert pages.healthz().status == 200
    runtime.fail(DeviceLost("the device failed (RuntimeError); this worker stops"))
    page = pages.healthz()
    assert (page.status, page.body) == (503, b"the device failed (RuntimeError); this worker stops\n")
    assert pages.readyz().status == 503
    assert runtime._publishes
    assert driver._stopping.is_set()
    runtime.failure = RuntimeError("the broker refuses us")
    assert not runtime._publishes


class FullConsumer(Consumer):
    """Has more events fetched than it hands out at once, and requests behind them."""

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Any]]:
        if not partitions:
            return {TopicPartition(EVENTS, 0): [fetched(EVENTS, offset) for offset in range(max_records)]}
        return {tp: [fetched(REQUESTS, 0)] for tp in partitions if tp == TopicPartition(REQUESTS, 0)}


def fetched(topic: str, offset: int) -> SimpleNamespace:
    return SimpleNamespace(topic=topic, partition=0, offset=offset, key=b"u", value=b"", timestamp=0, headers=())


async def one_round(driver: KafkaDriver, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The topics of what is processed, in its order, of one round."""
    topics: list[str] = []
    monkeypatch.setattr(driver.runtime, "process", lambda records: topics.extend(record.topic for record in records))

    def stop() -> None:
        raise InterruptedError

    monkeypatch.setattr(driver, "_rest_and_resume", stop)
    driver._assigned.set()
    with pytest.raises(InterruptedError):
        await driver._consume()
    return topics


async def test_requests_do_not_wait_until_no_more_events_are_fetched(
    driver: KafkaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver._consumer = FullConsumer()
    topics = await one_round(driver, monkeypatch)
    assert topics == [EVENTS] * (len(topics) - 1) + [REQUESTS]
    assert len(topics) > 100
