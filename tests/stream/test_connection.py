"""How brokers are named and found, and what of aiokafka's insides a connection sets right."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    NodeNotReadyError,
    NotCoordinatorForGroupError,
    RequestTimedOutError,
    UnknownError,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from xgr_stream.client import RecommendClient
from xgr_stream.errors import ConfigError, RequestFailed
from xgr_stream.stream.connection import Connection, read_plainly

LOG, OTHER = TopicPartition("log", 3), TopicPartition("other", 3)
WRITTEN = [(b"a", b"1"), (b"b", None), (b"a", b"")]


def fetched(tp: TopicPartition) -> FetchResult:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1_000)
    for offset, (key, value) in enumerate(WRITTEN):
        builder.append(offset, timestamp=7, key=key, value=value, headers=[])
    state = SimpleNamespace(paused=False, position=0, consumed_to=lambda offset: None)
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    records = PartitionRecords(tp, MemoryRecords(bytes(builder.build())), [], 0, None, None, True, 0)
    return FetchResult(tp, assignment=assignment, partition_records=records, backoff=0)


@pytest.mark.parametrize(
    "brokers", ["kafka://localhost:9092", "localhost", "localhost:0", ":9092", "\udcff:9092", 9092]
)
def test_brokers_are_named_by_host_and_port(brokers: Any) -> None:
    with pytest.raises(ConfigError, match=r"^bootstrap must be 'host:port', several separated by commas, not "):
        RecommendClient(brokers)


@pytest.mark.parametrize("name", ["session_timeout_ms", "rebalance_timeout_ms"])
@pytest.mark.parametrize("value", [0, 1 << 31, 10_000.0, float("nan"), True])
def test_timeouts_are_what_kafka_has_room_for(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be an integer from 1 to 2147483647, not {value!r}"):
        Connection("localhost:1", **{name: value})


@pytest.mark.parametrize("value", ["", "\udcff", 7])
def test_a_member_has_a_name_that_can_be_sent(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^group_instance_id must be printable text or None, not "):
        Connection("localhost:1", group_instance_id=value)


async def test_a_client_without_a_broker_says_so() -> None:
    with pytest.raises(RequestFailed, match="no connection to localhost:1: "):
        await RecommendClient("localhost:1").start()


@pytest.mark.parametrize(
    ("first", "second", "idempotent"),
    [
        (None, None, [True]),
        (UnknownError(), None, [True, False]),  # as a broker answers that has no idempotent producers
        (IncompatibleBrokerVersion(), None, [True, False]),
        (RequestTimedOutError(), None, [True]),
        (NodeNotReadyError(), None, [True]),
        (KafkaConnectionError(), None, [True]),
        (UnknownError(), KafkaConnectionError(), [True, False]),
        (OSError("no such file"), None, [True]),
        (asyncio.CancelledError(), None, [True]),
    ],
)
async def test_a_producer_is_idempotent_unless_the_broker_refuses_one_and_none_is_left_open(
    first: BaseException | None, second: BaseException | None, idempotent: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, made, open_ = iter([first, second]), [], set()

    async def start(self: AIOKafkaProducer) -> None:
        made.append(self._txn_manager is not None)
        open_.add(self)
        if (error := next(starts)) is not None:
            raise error

    async def stop(self: AIOKafkaProducer) -> None:
        open_.remove(self)

    monkeypatch.setattr(AIOKafkaProducer, "start", start)
    monkeypatch.setattr(AIOKafkaProducer, "stop", stop)
    last = [first, second][len(idempotent) - 1]
    if last is None:
        assert {await Connection("localhost:1").start_producer()} == open_
    else:
        with pytest.raises(type(last)):
            await Connection("localhost:1").start_producer()
        assert not open_
    assert made == idempotent


async def test_a_broker_that_is_not_the_coordinator_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not, a worker takes nothing to be committed, and reads all again."""

    async def answer(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(error_code=NotCoordinatorForGroupError.errno, topics=[])

    monkeypatch.setattr(AIOKafkaClient, "send", answer)
    consumer = Connection("localhost:1").consumer(group_id="group")
    with pytest.raises(NotCoordinatorForGroupError):
        await consumer._client.send(0, OffsetFetchRequest("group", []))
    assert (await consumer._client.send(0, MetadataRequest([]))).topics == []
    await consumer.stop()


def test_records_of_the_topic_are_returned_as_they_were_decoded() -> None:
    fetcher: Any = SimpleNamespace(_records={})
    read_plainly(SimpleNamespace(_fetcher=fetcher), "log")  # type: ignore[arg-type]
    fetcher._records[LOG], fetcher._records[OTHER] = fetched(LOG), fetched(OTHER)

    plain, usual = fetcher._records[LOG].getall(), fetcher._records[OTHER].getall()

    assert [(r.offset, r.key, r.value, r.timestamp) for r in plain] == [
        (i, key, value, 7) for i, (key, value) in enumerate(WRITTEN)
    ]
    assert not hasattr(plain[0], "topic"), "aiokafka made records of its own: it does it in another way now"
    assert [(r.topic, r.offset, r.key, r.value) for r in usual] == [
        ("other", i, key, value) for i, (key, value) in enumerate(WRITTEN)
    ]
