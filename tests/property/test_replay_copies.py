"""Whatever copies a repartitioner writes again, each record of its sources counts once.

The events partitions are merges of what several repartitioners write at the same time: each begins at an offset that
was committed, writes in order, repeats what it can't know to be written, and may be frozen and go on much later. Some
events are no copies, some users are forgotten. Workers come and go as in test_replay_processor: killed, frozen, begun
anew from the changelog, compacted or not, from snapshots, and from standby copies.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.test_replay_processor import METRICS, Life, Topics
from tests.stream.harness import CHANGELOG, EVENTS
from xgr_stream.config import HistoryConfig, StreamConfig
from xgr_stream.history import HistoryStore, SourcePosition
from xgr_stream.history.packed import Numbering
from xgr_stream.history.snapshot import Snapshot, SnapshotWriter, Source
from xgr_stream.stream import changelog, codec
from xgr_stream.stream.changelog_batch import BatchReader
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.records import Record
from xgr_stream.stream.source_header import source_header

HISTORY = HistoryConfig(keep_events=5, segment_events=3)
USERS = [f"user-{i}" for i in range(5)]
PARTITIONS = 2
"""Of the events. A user's is their number's."""


class Original(NamedTuple):
    user: str
    item: str


Log = list[tuple[str | None, SourcePosition | None, str]]
"""Of an events partition: item (None: forget the user), source, user."""


class Writer:
    """A repartitioner of one source partition, from an offset on."""

    def __init__(self, name: tuple[str, int], originals: list[Original | None], begin: int) -> None:
        self.name = name
        self.originals = originals
        self.begin = self.at = begin

    def step(self, logs: dict[int, Log], rng: random.Random) -> None:
        """Write a batch: of each events partition in order, all of it before the next one. What fails may have been
        written or not, or in part to one partition; it is written until it is."""
        batch = range(self.at, min(self.at + rng.randint(1, 4), len(self.originals)))
        by_partition: defaultdict[int, Log] = defaultdict(list)
        for offset in batch:
            original = self.originals[offset]
            if original is not None:
                copy = (original.item, SourcePosition(*self.name, offset), original.user)
                by_partition[partition_of(original.user)].append(copy)
        failed = rng.random() < 0.2
        for partition, copies in by_partition.items():
            for _ in range(rng.choice([1, 1, 2, 3])):
                if not failed or rng.random() < 0.5:
                    logs[partition] += copies
        if not failed:
            self.at = batch.stop


def partition_of(user: str) -> int:
    return int(user.removeprefix("user-")) % PARTITIONS


def written(rng: random.Random) -> tuple[dict[int, Log], dict[tuple[str, int], list[Original | None]]]:
    """The events partitions, and the sources that were copied into them."""
    sources: dict[tuple[str, int], list[Original | None]] = {
        (topic, partition): [
            None if rng.random() < 0.1 else Original(rng.choice(USERS), f"{topic}-{partition}-{offset}")
            for offset in range(rng.randint(0, 25))
        ]
        for topic in ("views", "buys")[: rng.randint(1, 2)]
        for partition in range(rng.randint(1, 2))
    }
    logs: dict[int, Log] = {partition: [] for partition in range(PARTITIONS)}
    committed = dict.fromkeys(sources, 0)
    writers = {name: Writer(name, originals, 0) for name, originals in sources.items()}
    zombies: list[Writer] = []
    forgets = rng.choice([0.0, 0.05])
    while any(writer.at < len(writer.originals) for writer in writers.values()):
        name = rng.choice(list(sources))
        writers[name].step(logs, rng)
        if rng.random() < 0.4:
            committed[name] = rng.randint(committed[name], writers[name].at)
        if rng.random() < 0.2:  # it is taken for dead
            if rng.random() < 0.5:
                zombies.append(writers[name])
            writers[name] = Writer(name, sources[name], committed[name])
        if zombies and rng.random() < 0.3:
            rng.choice(zombies).step(logs, rng)
        if rng.random() < 0.2:
            user = rng.choice(USERS)
            logs[partition_of(user)].append((f"plain-{rng.randrange(99)}", None, user))
        if rng.random() < forgets:
            user = rng.choice(USERS)
            logs[partition_of(user)].append((None, None, user))
    return logs, sources


def expected(log: Log) -> tuple[dict[str, list[str]], dict[tuple[str, int], int]]:
    """Each user's items since they were last forgotten, and how far each source is included: of a set of all that came,
    not of watermarks."""
    items: dict[str, list[str]] = {}
    seen: set[SourcePosition] = set()
    reached: dict[tuple[str, int], int] = {}
    for item, source, user in log:
        if item is None:
            items.pop(user, None)
        elif source is None or source not in seen:
            items.setdefault(user, []).append(item)
        if source is not None:
            seen.add(source)
            reached[source[:2]] = max(source.offset, reached.get(source[:2], -1))
    return items, reached


def records(partition: int, log: Log) -> list[Record]:
    return [
        Record(
            EVENTS,
            partition,
            offset,
            user.encode(),
            None if item is None else codec.encode({"v": 1, "item_id": item}, "msgpack"),
            0,
            () if source is None else (("traceparent", b"00"), source_header(source)),
        )
        for offset, (item, source, user) in enumerate(log)
    ]


def check(store: HistoryStore, log: Log) -> None:
    items, reached = expected(log)
    store.check_integrity()
    views = {user: store.view(user) for user in store.users(0)}
    found = {
        user: (view.event_count, [store.item_names[i] for i in view.items.tolist()])
        for user, view in views.items()
        if view is not None
    }
    assert found == {user: (len(names), names[HISTORY.first_kept(len(names)) :]) for user, names in items.items()}
    assert {mark.source[:2]: mark.source.offset for mark in store.watermarks(0)} == reached


class CopyTopics(Topics):
    """Those of a partition; events may be longer than the workers have come to."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log
        self.logs[EVENTS] = [record._replace(partition=0) for record in records(0, log)]


class CopyLife(Life):
    """A worker that may begin from a snapshot or a standby copy."""

    def restore_from(self, snapshot: Path | None, standby: HistoryStore | None, fed: int) -> None:
        log = self.topics.logs[CHANGELOG]
        if standby is not None:
            self.history = standby
            config = StreamConfig(history=HISTORY)
            self.processor = Processor(
                self.device, standby, config, knows_item=bool, clock=self.topics.clock, metrics=METRICS
            )
            self.processor.assign([0], 1)
            log = log[fed:]
        elif snapshot is not None:
            opened = Snapshot(snapshot)
            names = self.history.item_names.add_all(opened.item_names)
            packed = list(opened.users(Numbering.of(opened.item_numbers, names, [])))
            self.processor.begin_restore(0, packed, opened.forgotten, opened.watermarks)
            log = log[opened.source.position :]
            opened.close()
        self.processor.restore(0, log)
        self.processor.restored(0, position=self.topics.committed[EVENTS], end=len(self.topics.logs[EVENTS]))

    def snapshot(self, path: Path) -> None:
        """What is durable is in it: it is taken when all is."""
        writer = SnapshotWriter(path)
        views = [view for user in self.history.users(0) if (view := self.history.view(user)) is not None]
        if views:
            writer.add(views)
        source = Source(
            CHANGELOG, 0, b"", 0, len(self.topics.logs[CHANGELOG]), HISTORY.keep_events, HISTORY.segment_events
        )
        writer.finish(source, self.history, [], self.history.forgotten(0), self.history.watermarks(0))
        writer.publish()

    def settle(self) -> None:
        """Have all that was taken written."""
        self.unsent += self.processor.poll()
        while self.unsent or self.unacknowledged:
            for output in self.unsent:
                self.topics.produce(output.produces)
            for output in [*self.unacknowledged, *self.unsent]:
                self.processor.acknowledged(output)
            self.unacknowledged.clear()
            self.unsent = self.processor.poll()


@given(st.integers(0, 2**32), st.lists(st.integers(0, 30), max_size=5))
@examples(200)
def test_each_record_of_a_source_counts_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lives: list[int]
) -> None:
    rng = random.Random(seed)
    logs, sources = written(rng)
    if not any(item is None for log in logs.values() for item, _, _ in log):
        counted = [item for log in logs.values() for items in expected(log)[0].values() for item in items]
        originals = [original.item for copied in sources.values() for original in copied if original is not None]
        assert sorted(item for item in counted if not item.startswith("plain")) == sorted(originals)
    for log in logs.values():
        run_workers(CopyTopics(log), lives, rng, tmp_path_factory.mktemp("snapshots") / "s")


def run_workers(topics: CopyTopics, lives: list[int], rng: random.Random, path: Path) -> None:
    def begin() -> CopyLife:
        life = CopyLife(topics, rng)
        chosen = rng.choice(["changelog", "snapshot", "standby"])
        standby, fed = None, rng.randint(0, len(topics.logs[CHANGELOG]))
        if chosen == "standby":
            standby = HistoryStore(HISTORY)
            changelog.restore_all(standby, 0, topics.logs[CHANGELOG][:fed])
        life.restore_from(path if chosen == "snapshot" and path.exists() else None, standby, fed)
        return life

    for steps in lives:
        life = begin()
        for _ in range(steps):
            life.step()
        frozen = list(life.unsent) if rng.random() < 0.5 else []
        if rng.random() < 0.3:
            frozen = []
            life.settle()
            life.snapshot(path)
        if rng.random() < 0.5:
            topics.compact()
            path.unlink(missing_ok=True)  # offsets stay in a real topic, places in this list don't
        successor = begin()
        for output in frozen:
            topics.produce(output.produces)
        for _ in range(rng.randint(0, 10)):
            successor.step()
    last = begin()
    last.finish()

    check(last.history, topics.log)
    for compact in (False, True):
        if compact:
            topics.compact()
        one_by_one, in_batches = HistoryStore(HISTORY), HistoryStore(HISTORY)
        changelog.restore_all(one_by_one, 0, topics.logs[CHANGELOG])
        BatchReader(in_batches).feed(0, topics.logs[CHANGELOG])
        for store in (one_by_one, in_batches):
            store.finish_restore(0)
            check(store, topics.log)
            assert store.watermarks(0) == last.history.watermarks(0)
