"""Records of a Faust app's consumer by the batch, without a broker: the test plays its reader and its assignments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP
from faust.types.tuples import Message

from xgr_stream.stream import faust_batches
from xgr_stream.stream.faust_batches import FaustBatches
from xgr_stream.stream.records import EVENTS_AT_ONCE, REQUESTS_AT_ONCE

SEEN, ASKED, THEIRS = TP("events", 0), TP("requests", 0), TP("views", 0)
NOTHING_ELSE: Any = dict.fromkeys(("timestamp", "timestamp_type", "headers", "key", "value", "checksum"))


def message(tp: TP, offset: int) -> Any:
    return SimpleNamespace(
        topic=tp.topic, partition=tp.partition, offset=offset, key=b"user", value=b"", timestamp=7, headers=()
    )


def messages(tp: TP, *offsets: int) -> dict[TP, list[Any]]:
    return {tp: [message(tp, offset) for offset in offsets]}


class Stage:
    """An app with its consumer, whose reader returns what the test says."""

    def __init__(self, app: faust.App) -> None:
        self.app = app
        self.consumer: Any = app.consumer
        self.fetched: dict[TP, list[Any]] = {}
        self.asked_for: list[set[TP]] = []
        self.took: list[tuple[str, list[int]]] = []
        self.upto: dict[tuple[str, int], int] = {}
        self.resting: set[tuple[str, int]] = set()
        self.on_take: Callable[[], None] = lambda: None
        self.consumer._getmany = self._getmany
        self.consumer.highwater = lambda tp: 1_000
        self.batches = FaustBatches(
            app,
            events=SEEN.topic,
            requests=ASKED.topic,
            take=self._take,
            committable=lambda topic, partition: self.upto.get((topic, partition)),
            must_rest=lambda topic, partition: (topic, partition) in self.resting,
        )
        self.batches.start()
        conductor: Any = app.topics
        conductor._tp_index.update({SEEN: {"ours"}, ASKED: {"ours"}, THEIRS: {"an agent"}})
        self.consumer.resume_flow()
        app.flow_control.resume()

    async def _getmany(self, active_partitions: set[TP], timeout: float) -> dict[TP, list[Any]]:
        self.asked_for.append(active_partitions)
        fetched, self.fetched = self.fetched, {}
        return fetched

    def _take(self, topic: str, records: list[Any]) -> None:
        self.took.append((topic, [record.offset for record in records]))
        self.on_take()

    async def fetch(self, fetched: dict[TP, list[Any]]) -> dict[TP, list[Any]]:
        """What the app's own agents get of it."""
        self.fetched = fetched
        left: dict[TP, list[Any]] = await self.consumer._getmany(active_partitions={SEEN, ASKED, THEIRS}, timeout=1.0)
        return left

    def committed(self) -> dict[TP, int]:
        """What the consumer would commit now."""
        offsets: dict[TP, int] = self.consumer._filter_committable_offsets(list(self.consumer._acked))
        return offsets

    @property
    def waited_for(self) -> int:
        """For how many things Faust would wait before a rebalance."""
        return len(self.consumer._unacked_messages)


@pytest.fixture
async def stage(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(faust_batches, "RESTING_POLL_S", 0.0)
    return Stage(
        faust.App("test", broker="kafka://127.0.0.1:1", web_enabled=False, datadir=tmp_path, autodiscover=False)
    )


async def test_records_are_taken_and_those_of_others_are_left(stage: Stage) -> None:
    left = await stage.fetch(messages(SEEN, 5, 6, 9) | messages(ASKED, 3) | messages(THEIRS, 1))
    assert stage.took == [("events", [5, 6, 9]), ("requests", [3])]
    assert list(left) == [THEIRS]
    assert (stage.consumer._read_offset[SEEN], stage.consumer._read_offset[ASKED]) == (9, 3)
    assert stage.app.monitor.messages_received_by_topic == {"events": 3, "requests": 1}


async def test_events_and_requests_come_in_slices_in_turn(stage: Stage) -> None:
    await stage.fetch(messages(SEEN, *range(2 * EVENTS_AT_ONCE + 1)) | messages(ASKED, *range(REQUESTS_AT_ONCE + 1)))
    assert [(topic, len(offsets)) for topic, offsets in stage.took] == [
        ("events", EVENTS_AT_ONCE),
        ("requests", REQUESTS_AT_ONCE),
        ("events", EVENTS_AT_ONCE),
        ("requests", 1),
        ("events", 1),
    ]
    seen = [n for topic, offsets in stage.took if topic == "events" for n in offsets]
    assert seen == list(range(2 * EVENTS_AT_ONCE + 1))


async def test_a_partition_that_an_agent_reads_too_goes_fausts_way(stage: Stage) -> None:
    stage.app.topics._tp_index[SEEN] = {"ours", "an agent's"}  # type: ignore[attr-defined]
    left = await stage.fetch(messages(SEEN, 5) | messages(ASKED, 3))
    assert (list(left), stage.took) == ([SEEN], [("requests", [3])])
    assert not stage.consumer._acked[SEEN]


async def test_what_is_durable_is_committed_and_nothing_beyond(stage: Stage) -> None:
    await stage.fetch(messages(SEEN, 5, 6, 9) | messages(ASKED, 3))
    assert stage.committed() == {}
    stage.upto[SEEN] = 7
    assert stage.committed() == {SEEN: 7}
    stage.consumer._committed_offset[SEEN] = 7
    assert stage.committed() == {}
    stage.upto |= {SEEN: 10, ASKED: 4}
    stage.consumer._acked[THEIRS] = [1]
    assert stage.committed() == {SEEN: 10, ASKED: 4, THEIRS: 2}


async def test_a_rebalance_waits_for_what_is_open(stage: Stage) -> None:
    await stage.fetch(messages(SEEN, 5, 6) | messages(ASKED, 3))
    assert stage.waited_for == 2
    stage.upto |= {SEEN: 6, ASKED: 4}
    stage.batches.progressed(*SEEN)
    stage.batches.progressed(*ASKED)
    assert stage.waited_for == 1
    stage.upto[SEEN] = 7
    stage.batches.progressed(*SEEN)
    assert stage.waited_for == 0
    await stage.fetch(messages(SEEN, 7))
    assert stage.waited_for == 1


async def test_what_is_revoked_is_neither_waited_for_nor_committed(stage: Stage) -> None:
    await stage.fetch(messages(SEEN, 5))
    stage.upto[SEEN] = 6
    stage.batches.revoked({SEEN, ASKED})
    assert (stage.waited_for, stage.committed()) == (0, {})


@pytest.mark.parametrize("begins", ["a rebalance", "another generation"])
async def test_what_is_left_of_a_fetch_when_a_rebalance_begins_is_let_go(stage: Stage, begins: str) -> None:
    """It comes again, from the committed offset on: to take it after those would lose them."""

    def rebalance() -> None:
        if begins == "a rebalance":
            stage.consumer.stop_flow()
        else:
            stage.app.consumer_generation_id += 1

    stage.on_take = rebalance
    assert await stage.fetch(messages(SEEN, *range(2 * EVENTS_AT_ONCE))) == {}
    assert [len(offsets) for _, offsets in stage.took] == [EVENTS_AT_ONCE]
    assert stage.consumer._read_offset[SEEN] == EVENTS_AT_ONCE - 1


async def test_nothing_is_taken_while_the_apps_flow_is_suspended(stage: Stage) -> None:
    stage.app.flow_control.suspend()
    fetching = asyncio.create_task(stage.fetch(messages(SEEN, 5)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert stage.took == []
    stage.app.flow_control.resume()
    await asyncio.wait_for(fetching, 10)
    assert stage.took == [("events", [5])]


async def test_partitions_that_must_rest_are_not_read(stage: Stage) -> None:
    stage.resting = {SEEN}
    await stage.fetch({})
    assert stage.asked_for == [{ASKED, THEIRS}]
    stage.resting = {SEEN, ASKED, THEIRS}  # theirs is none of ours to rest
    await stage.fetch({})
    assert stage.asked_for[1:] == [{THEIRS}]
    assert await stage.consumer._getmany(active_partitions={SEEN}, timeout=1.0) == {}
    assert len(stage.asked_for) == 2, "none named would mean all"


async def test_after_the_drain_records_are_let_go_and_what_is_durable_is_committed(stage: Stage) -> None:
    await stage.fetch(messages(SEEN, 5, 6))
    stage.upto[SEEN] = 6
    stage.batches.stop()
    assert await stage.fetch(messages(SEEN, 7)) == {}
    assert (stage.waited_for, len(stage.took), stage.committed()) == (0, 1, {SEEN: 6})


async def test_a_consumer_is_taken_over_once(stage: Stage) -> None:
    fetch = stage.consumer._getmany
    stage.batches.start()
    assert stage.consumer._getmany == fetch


async def test_a_rebalance_while_the_app_stops_leaves_the_stop_its_connections(stage: Stage) -> None:
    """Without them its last commit would never end."""
    closed: list[str] = []
    stage.consumer._thread = SimpleNamespace(close=lambda: closed.append("the client"))
    app: Any = stage.app
    app._stopped.set()
    await app._on_partitions_revoked({SEEN})
    await app._on_partitions_assigned(set())
    assert closed == []


async def test_once_stopped_faust_waits_for_what_others_have_open_alone(stage: Stage) -> None:
    """Of records that came Faust's way: somewhere in Faust there may be one that no actor takes any more."""
    ours, shared, theirs = (Message(*tp, offset=7, **NOTHING_ELSE) for tp in (SEEN, SEEN, THEIRS))
    shared.incref(2)
    for message in (ours, shared, theirs):
        stage.consumer.track_message(message)
    stage.consumer._clean_unacked_messages()
    assert stage.waited_for == 3
    stage.batches.stop()
    assert set(stage.consumer._unacked_messages) == {shared, theirs}
    shared.decref()  # they are done
    stage.consumer._clean_unacked_messages()
    assert set(stage.consumer._unacked_messages) == {theirs}


async def test_what_we_are_done_with_and_others_are_not_is_waited_for(stage: Stage) -> None:
    """Else Faust breaks off the agent that has it, and commits past it."""
    shared = Message(*SEEN, offset=7, **NOTHING_ELSE)
    shared.incref(2)
    stage.consumer.track_message(shared)
    shared.decref()  # we are done
    stage.batches.acknowledged(shared)
    stage.batches.stop()
    assert set(stage.consumer._unacked_messages) == {shared}
    shared.acked = True
    stage.consumer._clean_unacked_messages()
    assert stage.waited_for == 0


async def test_what_an_agent_of_ours_has_open_of_another_topic_is_let_go_too(stage: Stage) -> None:
    views = Message(*THEIRS, offset=7, **NOTHING_ELSE)
    views.incref()
    stage.consumer.track_message(views)
    stage.batches.let_go_of(THEIRS.topic)
    stage.consumer._clean_unacked_messages()
    assert stage.waited_for == 1
    stage.batches.stop()
    assert stage.waited_for == 0


async def test_of_several_recommenders_each_lets_go_once_stopped(stage: Stage) -> None:
    """Each takes over the app's one consumer."""
    batches: list[FaustBatches] = [stage.batches]
    for topic in ("views", "clicks"):
        batches.append(
            FaustBatches(
                stage.app,
                events=topic,
                requests=f"{topic}-asked",
                take=stage._take,
                committable=lambda *_: None,
                must_rest=lambda *_: False,
            )
        )
        batches[-1].start()
    held = [Message(*tp, offset=7, **NOTHING_ELSE) for tp in (SEEN, THEIRS, TP("clicks", 0))]
    for message in held:
        message.incref(2)
        stage.consumer.track_message(message)
    for each in batches:
        each.stop()
    assert stage.waited_for == 3
    for left, message in zip((2, 1, 0), held, strict=True):
        message.decref()  # its agent has let go
        stage.consumer._clean_unacked_messages()
        assert stage.waited_for == left
