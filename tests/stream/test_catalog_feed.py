"""The topic of catalog updates on its way to the engine: how far it is said to be, and what becomes of its merges."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from xgr_stream.config import EngineConfig, StreamConfig
from xgr_stream.errors import DeviceLost
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.clock import SystemClock
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.stream.catalog_feed import LONGEST_RETRY_S, CatalogFeed
from xgr_stream.stream.connection import Connection
from xgr_stream.testing import NullEngine
from xgr_stream.types import CatalogUpdate

Fetched = list[tuple[list[ConsumerRecord[bytes, bytes]], int]]
"""The records of each fetch, and the consumer's position behind it."""
UPDATE = ConsumerRecord("catalog", 0, 0, 0, 0, b"item-1", None, None, 6, 0, ())


class Consumer:
    """What the feed asks of a consumer, and of the connection that it is from."""

    def __init__(self, fetched: Fetched) -> None:
        self._fetched = iter(fetched)
        self._position = 0
        self._end = fetched[-1][1] if fetched else 0

    def consumer(self, **_: Any) -> Consumer:
        return self

    async def start(self) -> None: ...
    async def seek_to_beginning(self, _: TopicPartition) -> None: ...
    def assign(self, _: list[TopicPartition]) -> None: ...

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("catalog", 0)}

    def highwater(self, _: TopicPartition) -> int:
        return self._end

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self._end)

    async def position(self, _: TopicPartition) -> int:
        return self._position

    async def getmany(self, partition: TopicPartition, **_: Any) -> dict[TopicPartition, list[Any]]:
        records, self._position = next(self._fetched)
        return {partition: records} if records else {}


@pytest.fixture
def device() -> Iterator[DeviceWorker]:
    device = DeviceWorker(NullEngine(), EngineConfig(), SystemClock(), Metrics())
    device.start()
    yield device
    device.stop(5)


def feed_of(device: DeviceWorker, engine: NullEngine, fetched: Fetched) -> CatalogFeed:
    connection = cast("Connection", Consumer(fetched))
    return CatalogFeed(connection, "catalog", engine, device, StreamConfig(), Metrics())


@pytest.mark.parametrize(
    ("fetched", "position"),
    [([([UPDATE], 1), ([], 2)], 1), ([([UPDATE], 3)], 1), ([([], 2)], 0)],
    ids=["committed", "aborted behind it", "aborted"],
)
async def test_a_transactions_marker_at_the_end_leaves_nothing_behind(
    device: DeviceWorker, fetched: Fetched, position: int
) -> None:
    feed = feed_of(device, NullEngine(), fetched)
    await feed.start()
    assert feed.status == {"position": position, "behind": 0, "merge_error": None}


@pytest.mark.parametrize(("key", "counts_as"), [(b"item-1", "a tombstone"), (b"", "nothing"), (None, "nothing")])
async def test_it_is_said_what_a_record_that_can_t_be_read_counts_as(
    device: DeviceWorker, caplog: pytest.LogCaptureFixture, key: bytes | None, counts_as: str
) -> None:
    record = ConsumerRecord("catalog", 0, 0, 0, 0, key, b"[]", None, 6, 2, ())
    await feed_of(device, NullEngine(), [([record], 1)]).start()
    (said,) = [line.getMessage() for line in caplog.records if "can't be read" in line.getMessage()]
    assert f"it counts as {counts_as}: " in said


async def test_merges_without_memory_are_tried_again_with_growing_pauses(device: DeviceWorker) -> None:
    class Short(NullEngine):
        lacks = True

        def begin_merge(self) -> None:
            if self.lacks:
                raise MemoryError("none left")

    engine = Short()
    feed = feed_of(device, engine, [])
    await feed.start()
    assert feed.status["merge_error"] == "no memory for a merge: none left"
    pauses = []
    for _ in range(2_000):
        pauses.append(feed._rest_s)
        assert not await feed._merge()
    assert pauses[:4] == [5.0, 10.0, 20.0, 40.0]
    assert pauses[-1] == LONGEST_RETRY_S
    assert feed._metrics.registry.get_sample_value("xgr_catalog_merges_failed_total") == 2_001
    engine.lacks = False
    assert not await feed._merge()
    assert feed.status["merge_error"] is None


class Long:
    """A merge one step of which takes until the test lets it go on."""

    swapping = False

    def __init__(self, step: str) -> None:
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self._step = step
        self._came: list[dict[str, CatalogUpdate]] = [{"item-1": CatalogUpdate("item-1", None)}, {}]

    def _take(self, step: str) -> None:
        if step == self._step:
            self.begun.set()
            self.may_go_on.wait(10)

    def run(self) -> None:
        self._take("run")

    def follow(self, _: object) -> None:
        self._take("follow")

    def discard(self) -> None:
        self._take("discard")

    def handed_over(self) -> dict[str, CatalogUpdate]:
        return self._came.pop(0)

    def finish(self) -> None: ...
    def abandon(self) -> None: ...


@pytest.mark.parametrize("step", ["run", "follow", "discard"])
def test_a_worker_that_stops_does_not_wait_for_a_merge(device: DeviceWorker, step: str) -> None:
    engine, merge = NullEngine(), Long(step)
    engine.begin_merge = lambda: merge  # type: ignore[assignment,method-assign,return-value]

    async def stop_meanwhile() -> None:
        merging = asyncio.create_task(feed_of(device, engine, [])._merge())
        while not merge.begun.is_set():  # noqa: ASYNC110  a thread sets it
            await asyncio.sleep(0.005)
        merging.cancel()
        await asyncio.wait({merging})

    started = time.monotonic()
    asyncio.run(stop_meanwhile())
    assert time.monotonic() - started < 5
    merge.may_go_on.set()


class Unfinished:
    """A merge that there is no memory to finish."""

    def __init__(self, swapping: bool) -> None:
        self.swapping = False
        self.calls: list[str] = []
        self._swaps = swapping

    def run(self) -> None: ...
    def follow(self, _: object) -> None: ...

    def handed_over(self) -> dict[str, CatalogUpdate]:
        return {}

    def finish(self) -> None:
        self.swapping = self._swaps
        raise MemoryError("none left")

    def abandon(self) -> None:
        self.calls.append("abandon")

    def discard(self) -> None:
        self.calls.append("discard")


async def test_a_merge_is_tried_again_that_failed_before_it_changed_anything(device: DeviceWorker) -> None:
    engine, merge = NullEngine(), Unfinished(swapping=False)
    engine.begin_merge = lambda: merge  # type: ignore[assignment,method-assign,return-value]
    feed = feed_of(device, engine, [])
    await feed.start()
    assert (merge.calls, feed.merge_error) == (["abandon", "discard"], "no memory for a merge: none left")


async def test_half_a_swap_ends_the_feed(device: DeviceWorker) -> None:
    engine, merge = NullEngine(), Unfinished(swapping=True)
    engine.begin_merge = lambda: merge  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(MemoryError, match="none left"):
        await feed_of(device, engine, []).start()
    assert not merge.calls


async def test_what_else_fails_in_a_merge_ends_the_feed(device: DeviceWorker) -> None:
    class Wrong(NullEngine):
        def begin_merge(self) -> None:
            raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        await feed_of(device, Wrong(), []).start()


async def test_a_device_that_is_lost_in_a_merge_is_named_so(device: DeviceWorker) -> None:
    class Lost(Unfinished):
        def run(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = NullEngine()
    engine.begin_merge = lambda: Lost(swapping=False)  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(DeviceLost, match="the device failed"):
        await feed_of(device, engine, []).start()
