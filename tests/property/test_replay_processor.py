"""Killing or freezing the worker at any point loses no event and no request.

One partition, its topics as lists. Workers come and go at random points: a killed one loses what it had not sent, a
frozen one sends it after its successor has begun. What was sent may or may not have been acknowledged or committed,
and the changelog may be compacted in between.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.stream.harness import CHANGELOG, DEAD, EVENTS, REQUESTS, RESPONSES, HandWorker
from xgr_stream.config import HistoryConfig, StreamConfig
from xgr_stream.history import HistoryStore
from xgr_stream.metrics import Metrics
from xgr_stream.stream import changelog, codec
from xgr_stream.stream.outbox import Output
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.records import Produce, Record
from xgr_stream.testing.clock import ManualClock
from xgr_stream.types import UserEvent

HISTORY = HistoryConfig(keep_events=5, segment_events=3)
CONFIG = StreamConfig(history=HISTORY, default_timeout_ms=3_600_000)
METRICS = Metrics()
"""Of all lives, since nobody reads them: to make them takes a fifth of what a short life does."""


class Topics:
    """A broker's memory of partition 0, and the offsets committed by the group."""

    def __init__(self) -> None:
        self.logs: dict[str, list[Record]] = defaultdict(list)
        self.committed = {EVENTS: 0, REQUESTS: 0}
        self.clock = ManualClock()

    def send(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        log = self.logs[topic]
        log.append(Record(topic, 0, len(log), key, value, self.clock.wall_ms()))

    def compact(self) -> None:
        """What a compacted topic becomes in the end: the last record of each key, and no tombstones."""
        log = self.logs[CHANGELOG]
        last = {record.key: record for record in log}
        self.logs[CHANGELOG] = [record for record in log if record is last[record.key] and record.value is not None]

    def produce(self, produces: Sequence[Produce]) -> None:
        for produce in produces:
            self.send(produce.topic, produce.key, produce.value)


class Life:
    """One worker, from its assignment to its end, moved step by step."""

    def __init__(self, topics: Topics, rng: random.Random) -> None:
        self.topics = topics
        self.rng = rng
        self.device = HandWorker()
        self.history = HistoryStore(HISTORY)
        self.processor = Processor(
            self.device,
            self.history,
            CONFIG,
            knows_item=lambda item: True,
            clock=topics.clock,
            metrics=METRICS,
        )
        self.processor.assign([0], 1)
        self.position = dict(topics.committed)
        self.unsent: list[Output] = []
        self.unacknowledged: list[Output] = []

    def restore(self) -> None:
        logs = self.topics.logs
        self.processor.restore(0, logs[CHANGELOG])
        self.processor.restore_answers(0, logs[RESPONSES])
        self.processor.restored(0, position=self.topics.committed[EVENTS], end=len(logs[EVENTS]))

    def fetch(self) -> None:
        topic = self.rng.choice([EVENTS, REQUESTS])
        at = self.position[topic]
        batch = self.topics.logs[topic][at : at + self.rng.randint(1, 6)]
        self.position[topic] += len(batch)
        self.processor.process(batch)

    def compute(self) -> None:
        self.device.work()

    def publish(self) -> None:
        self.unsent += self.processor.poll()
        if self.unsent and self.unsent[0].topic == EVENTS and self.rng.random() < 0.2:
            # Events are written together: a worker that dies now leaves some of them, and the next repeats them.
            produces = self.unsent[0].produces
            self.topics.produce(produces[: self.rng.randint(0, len(produces))])
        for _ in range(self.rng.randint(0, len(self.unsent))):
            self.topics.produce(self.unsent[0].produces)
            self.unacknowledged.append(self.unsent.pop(0))

    def acknowledge(self) -> None:
        self.rng.shuffle(self.unacknowledged)
        for _ in range(self.rng.randint(0, len(self.unacknowledged))):
            self.processor.acknowledged(self.unacknowledged.pop())

    def commit(self) -> None:
        for topic in (EVENTS, REQUESTS):
            offset = self.processor.committable(topic, 0)
            if offset is not None:
                self.topics.committed[topic] = offset

    def step(self) -> None:
        self.rng.choice([self.fetch, self.fetch, self.compute, self.publish, self.acknowledge, self.commit])()

    def finish(self) -> None:
        """Go on until everything is committed."""
        ends = {topic: len(self.topics.logs[topic]) for topic in (EVENTS, REQUESTS)}
        for _ in range(10_000):
            if self.topics.committed == ends:
                return
            for step in (self.fetch, self.compute, self.publish, self.acknowledge, self.commit):
                step()
        raise AssertionError(f"committed {self.topics.committed} of {ends}")


def filled(rng: random.Random, num_records: int) -> Topics:
    topics = Topics()
    for i in range(num_records):
        user = f"user-{rng.randrange(3)}"
        message: dict[str, Any] = {"v": 1, "item_id": f"item-{rng.randrange(9)}"}
        topic = EVENTS
        if rng.random() < 0.3:
            topic, message = REQUESTS, {"v": 1, "request_id": f"r-{i}"}
        value = b"garbage" if rng.random() < 0.05 else codec.encode(message, "msgpack")
        topics.send(topic, user.encode(), value)
    return topics


def expected(topics: Topics) -> HistoryStore:
    """The history by the events topic alone."""
    store = HistoryStore(HISTORY)
    for record in topics.logs[EVENTS]:
        if record.value != b"garbage":
            event = UserEvent((record.key or b"").decode(), codec.decode(record.value or b"", 1 << 20)["item_id"])
            store.apply(event, partition=0, offset=record.offset)
    return store


def contents(store: HistoryStore) -> dict[str, tuple[int, int, int, list[str]]]:
    store.check_integrity()
    views = [store.view(user) for user in store.users(0)]
    return {
        v.user_id: (v.event_count, v.first_number, v.last_offset, [store.item_names[i] for i in v.items.tolist()])
        for v in views
        if v is not None
    }


@given(st.integers(0, 2**32), st.integers(0, 60), st.lists(st.integers(0, 40), max_size=5))
@examples(150)
def test_whenever_workers_die_or_freeze_every_event_counts_once_and_every_request_is_answered(
    seed: int, num_records: int, lives: list[int]
) -> None:
    rng = random.Random(seed)
    topics = filled(rng, num_records)
    for steps in lives:
        life = Life(topics, rng)
        life.restore()
        for _ in range(steps):
            life.step()
        frozen = life.unsent if rng.random() < 0.5 else []
        if rng.random() < 0.5:
            topics.compact()
        successor = Life(topics, rng)
        successor.restore()
        for output in frozen:
            topics.produce(output.produces)
        for _ in range(rng.randint(0, 10)):
            successor.step()
    last = Life(topics, rng)
    last.restore()
    last.finish()

    whole = contents(expected(topics))
    assert contents(last.history) == whole
    read_back = HistoryStore(HISTORY)
    for record in topics.logs[CHANGELOG]:
        changelog.restore(read_back, 0, record.key, record.value)
    read_back.finish_restore(0)
    assert contents(read_back) == whole

    answers: dict[tuple[str, int], list[Any]] = {}
    for record in topics.logs[RESPONSES]:
        answer = codec.decode(record.value or b"", 1 << 20)
        assert answer["status"] != "error"
        items = answers.setdefault((answer["request_id"], answer["event_offset"]), answer["items"])
        assert items == answer["items"]
    asked = {
        codec.decode(record.value or b"", 1 << 20)["request_id"]
        for record in topics.logs[REQUESTS]
        if record.value != b"garbage"
    }
    assert {request_id for request_id, _ in answers} == asked
    garbage = {(r.topic, r.offset) for t in (EVENTS, REQUESTS) for r in topics.logs[t] if r.value == b"garbage"}
    letters = [codec.decode(record.value or b"", 1 << 20) for record in topics.logs[DEAD]]
    assert {(letter["topic"], letter["offset"]) for letter in letters} == garbage
