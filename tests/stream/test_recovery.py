"""A restore's reading, with a reader that a test works by hand; tests/integration has it with brokers."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from tests.garbage import Knot
from xgr_stream.config import StreamConfig
from xgr_stream.stream.recovery import Recovery, making_histories
from xgr_stream.testing import ManualClock

NUMBER = 3
CONFIG = StreamConfig()
LOG, EVENTS = TopicPartition(CONFIG.topics.changelog, NUMBER), TopicPartition(CONFIG.topics.events, NUMBER)

Batches = Mapping[TopicPartition, list[Any]]


def message(tp: TopicPartition, offset: int, key: bytes = b"user", value: bytes = b"") -> Any:
    return SimpleNamespace(
        topic=tp.topic, partition=tp.partition, offset=offset, key=key, value=value, timestamp=0, headers=()
    )


class Producer:
    """Knows the fence that was written."""

    def __init__(self) -> None:
        self.fence: Any = None

    async def send_and_wait(self, topic: str, value: bytes, key: bytes, *, partition: int) -> None:
        self.fence = message(LOG, 0, key, value)


class Consumer:
    """Returns what `polls` say, one after the other; an integer puts the events' position there, without a record."""

    def __init__(self, polls: Iterable[Callable[[], Batches] | int], begin: int, end: int) -> None:
        self._client = SimpleNamespace(_metadata_update=None)
        self._fetcher = None
        self._polls, self._begin, self._end = iter(polls), begin, end
        self._position = 0

    async def start(self) -> None:
        """There is nothing to connect to."""

    async def stop(self) -> None:
        """There is nothing to close."""

    async def offsets_for_times(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, None]:
        return dict.fromkeys(times)

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self._begin)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self._end)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        assert set(partitions) == {LOG, EVENTS}

    async def seek_to_beginning(self, tp: TopicPartition) -> None:
        assert tp == LOG

    def seek(self, tp: TopicPartition, offset: int) -> None:
        assert tp == EVENTS
        self._position = offset

    def pause(self, tp: TopicPartition) -> None:
        assert tp == EVENTS

    async def position(self, tp: TopicPartition) -> int:
        assert tp == EVENTS
        return self._position

    async def committed(self, tp: TopicPartition) -> None:
        return None

    async def getmany(self, *, timeout_ms: int, max_records: int) -> Batches:
        poll = next(self._polls)
        if isinstance(poll, int):
            self._position = poll
            return {}
        batches = poll()
        if events := batches.get(EVENTS):
            self._position = events[-1].offset + 1
        return batches


class Processor:
    def __init__(self) -> None:
        self.end: int | None = None
        self.unsettled = 0
        self.settling = self.most_settling = 0
        self.done: list[str] = []

    def restore(self, number: int, records: Iterable[Any]) -> None:
        records = list(records)
        assert all(record.topic == LOG.topic for record in records)
        self.unsettled += len(records)
        self.done.append(f"{len(records)} read")

    def must_settle(self, number: int) -> bool:
        return self.unsettled > 2

    def settle(self, number: int) -> Iterator[None]:
        self.unsettled = 0
        self.settling += 1
        self.most_settling = max(self.most_settling, self.settling)
        yield
        self.settling -= 1
        self.done.append("settled")

    def restored(self, number: int, *, position: int | None, end: int) -> None:
        self.end = end


async def end_found(polls: Iterable[str | int], *, begin: int, end: int) -> int | None:
    return (await restored(polls, begin=begin, end=end)).end


async def restored(polls: Iterable[str | int], *, begin: int, end: int, times: int = 1) -> Processor:
    """`times`: by so many restores at the same time."""
    producer, processor = Producer(), Processor()
    found: dict[str, Callable[[], Batches]] = {
        "nothing": dict,
        "two records": lambda: {LOG: [message(LOG, 0), message(LOG, 1)]},
        "fence": lambda: {LOG: [producer.fence]},
        "last events": lambda: {EVENTS: [message(EVENTS, offset) for offset in (6712, 6713)]},
    }
    steps = [poll if isinstance(poll, int) else found[poll] for poll in polls]
    connection: Any = SimpleNamespace(consumer=lambda **_: Consumer(steps, begin, end))
    recovery = Recovery(connection, producer.send_and_wait, processor, CONFIG, group_id="group", clock=ManualClock())  # type: ignore[arg-type]
    await asyncio.gather(*(recovery.run(NUMBER) for _ in range(times)))
    return processor


@pytest.mark.parametrize("late", [0, 1, 5])
async def test_the_last_event_is_waited_for_however_late_it_comes(late: int) -> None:
    """A broker that counts a batch as one record said 6713, and the history includes that offset."""
    assert await end_found(["fence", *["nothing"] * late, "last events"], begin=0, end=6713) == 6714


async def test_an_end_without_a_record_is_where_the_reader_has_come_to() -> None:
    assert await end_found(["fence", "nothing", 8], begin=0, end=8) == 8


async def test_a_topic_without_records_is_not_waited_for() -> None:
    assert await end_found(["fence"], begin=8, end=8) == 8


async def test_what_was_read_is_settled_when_it_is_much_and_at_the_end() -> None:
    polls = ["two records", "two records", "two records", "fence"]
    processor = await restored(polls, begin=8, end=8)
    assert processor.done == ["2 read", "2 read", "settled", "2 read", "1 read", "settled", "settled"]


async def test_one_partition_is_settled_at_a_time() -> None:
    """While it is, both its records and its histories are in memory."""
    processor = await restored(["two records", "fence"], begin=8, end=8, times=3)
    assert processor.done.count("settled") == 6
    assert processor.most_settling == 1


def test_while_others_are_being_made_nothing_is_collected() -> None:
    with making_histories():
        with making_histories():
            gone = weakref.ref(Knot())
        assert gone() is not None
        assert not gc.isenabled()
    assert gone() is None


def test_an_application_that_collects_by_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[object] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(None))
    gc.disable()
    try:
        with making_histories():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert not frozen


def test_what_was_let_go_while_histories_were_made_does_not_stay() -> None:
    with making_histories():
        gone = weakref.ref(Knot())
        kept = Knot()
        assert gone() is not None
    assert gone() is None
    assert kept.itself is kept
    assert gc.isenabled()
