"""The topic of catalog updates, read whole by every worker, and its way to the device thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from xgr_stream.config import StreamConfig
from xgr_stream.errors import InvalidInput, TopologyError
from xgr_stream.metrics import Metrics
from xgr_stream.scheduler.faults import Fault, answer_to, fault
from xgr_stream.scheduler.worker import DeviceWorker
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.batches import BESIDE_VALUE_BYTES, Limits, bound_batches
from xgr_stream.stream.connection import Connection, stop_client
from xgr_stream.stream.setup import Merge, ServedEngine
from xgr_stream.stream.threads import on_a_thread
from xgr_stream.types import CatalogUpdate

logger = logging.getLogger(__name__)

POLL_MS = 200
MAX_RECORDS = 5_000
AT_ONCE = 256
"""Updates that the device thread applies in one go, 1 to 2 ms; batches have their turn in between."""
MAX_LOGGED = 1_000
"""Updates that can't be read and are named in the log, before it falls silent about them."""
RETRY_S = 5.0
"""After a merge that there was no memory for; twice as long after each further one in a row."""
LONGEST_RETRY_S = 300.0
MERGE_THREAD = "xgr-merge"
T = TypeVar("T")


class CatalogFeed:
    """Reads the only partition of the topic, without a group: to its end in `start`, then on and on in `run`.

    What comes and goes is applied as it is read. What must be merged is, on a thread of its own, one merge after the
    other. One that there is no memory for is given up: its items go on waiting, and it is tried again later. An engine
    that does not serve yet (`serves`) has its updates applied on another thread than the device's.
    An update that can't be read counts as a tombstone of its item: compaction leaves nothing of what the item was
    before, so that a worker that starts later could not know it either.
    """

    def __init__(
        self,
        connection: Connection,
        topic: str,
        engine: ServedEngine,
        device: DeviceWorker,
        config: StreamConfig,
        metrics: Metrics,
        *,
        leads: Callable[[], bool] = lambda: True,
        serves: bool = True,
    ) -> None:
        """`leads`: whether the metrics are to tell of this one; of several there is one that does."""
        self.serves = serves
        """Whether batches of the engine may be under way. To be set before they are, and not while the feed reads."""
        self.position = 0
        """The offset behind the last update that is applied."""
        self.merge_error: str | None = None
        """Why the last merge was given up; None if it was not, or nothing waits for one any more."""
        self._connection = connection
        self._partition = TopicPartition(topic, 0)
        bound_batches([topic], Limits(config.max_message_bytes + BESIDE_VALUE_BYTES))
        self._engine = engine
        self._device = device
        self._leads = leads
        self._max_message_bytes = config.max_message_bytes
        self._metrics = metrics
        self._consumer: AIOKafkaConsumer | None = None
        self._read_to = 0
        """Up to where the topic is applied: `position`, and a transaction's markers behind it."""
        self._waiting = asyncio.Event()
        self._rest_s = 0.0
        """Before the next merge."""
        self._retry_s = RETRY_S
        """The same, if the next one has to be given up."""
        self._num_logged = 0

    @property
    def behind(self) -> int:
        """Updates that are written, as the broker last told, and not applied yet."""
        reads = self._consumer is not None and self._partition in self._consumer.assignment()
        end = self._consumer.highwater(self._partition) if reads and self._consumer is not None else None
        return 0 if end is None else max(0, end - self._read_to)

    @property
    def status(self) -> dict[str, Any]:
        return {"position": self.position, "behind": self.behind, "merge_error": self.merge_error}

    async def start(self) -> None:
        """Returns once all that is in the topic now is applied, and merged if there is memory for it."""
        consumer = self._consumer = self._connection.consumer(
            auto_offset_reset="none", isolation_level="read_committed"
        )
        await consumer.start()
        consumer.assign([self._partition])
        await consumer.seek_to_beginning(self._partition)
        end = (await consumer.end_offsets([self._partition]))[self._partition]
        while await consumer.position(self._partition) < end:
            await self._read(consumer)
        while await self._merge():
            pass
        logger.info("%s is read up to offset %d", self._partition.topic, self.position)

    async def run(self) -> None:
        """Follow the topic, until cancelled. Raises `TopologyError` if it is not the same topic any more."""
        if self._consumer is None:
            raise RuntimeError("the feed must be started before it runs")
        merging = asyncio.create_task(self._merge_when_needed(), name="xgr-catalog-merge")
        reading = asyncio.create_task(self._follow(self._consumer), name="xgr-catalog-read")
        try:
            done, _ = await asyncio.wait({merging, reading}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            merging.cancel()
            reading.cancel()
            await asyncio.gather(merging, reading, return_exceptions=True)

    async def stop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_client(consumer)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            if await self._read(consumer):
                self._waiting.set()
            if self._leads():
                self._metrics.catalog_behind.set(self.behind)

    async def _read(self, consumer: AIOKafkaConsumer) -> bool:
        """Apply the next updates; whether there were any."""
        try:
            found = await consumer.getmany(self._partition, timeout_ms=POLL_MS, max_records=MAX_RECORDS)
        except OffsetOutOfRangeError as error:
            raise TopologyError(
                f"{self._partition.topic} must go on behind offset {self.position}, and it does not: it was recreated "
                "or truncated. Start the worker again: it reads the topic as it is now"
            ) from error
        records = found.get(self._partition, [])
        for first in range(0, len(records), AT_ONCE):
            await self._apply(records[first : first + AT_ONCE])
        self._read_to = await consumer.position(self._partition)
        return bool(records)

    async def _apply(self, records: Sequence[Any]) -> None:
        updates = [update for record in records if (update := self._update(record)) is not None]
        position = records[-1].offset + 1
        if self.serves:
            await self._on_device(partial(self._engine.update_catalog, updates, position))
        else:
            await asyncio.to_thread(self._engine.update_catalog, updates, position)
        self.position = position
        if self._leads():
            self._metrics.catalog_updates.inc(len(updates))
            self._metrics.catalog_position.set(position)

    def _update(self, record: Any) -> CatalogUpdate | None:
        update, error = read_update(record, self._engine.codes, self._max_message_bytes)
        if error is not None:
            self._refuse(record, error, "nothing" if update is None else "a tombstone")
        return update

    def _refuse(self, record: Any, error: InvalidInput, counts_as: str) -> None:
        self._metrics.catalog_updates_refused.labels(error.code).inc()
        self._num_logged += 1
        if self._num_logged <= MAX_LOGGED:
            where = f"{self._partition.topic}, offset {record.offset}, key {(record.key or b'')[:80]!r}"
            logger.warning("an update of the catalog can't be read (%s); it counts as %s: %s", where, counts_as, error)

    async def _merge_when_needed(self) -> None:
        while True:
            await asyncio.sleep(self._rest_s)
            await self._waiting.wait()
            self._waiting.clear()
            await self._merge()

    async def _merge(self) -> bool:
        """Merge what waits now; whether something did, and is merged."""
        started, merge, lacking = asyncio.get_running_loop().time(), None, None
        try:
            merge = await self._on_device(self._engine.begin_merge)
            if merge is not None:
                await on_a_thread(merge.run, MERGE_THREAD)
                while came := await self._on_device(merge.handed_over):
                    await on_a_thread(partial(merge.follow, came), MERGE_THREAD)
                await self._on_device(merge.finish)
        except Exception as error:
            if fault(error) is Fault.DEVICE:
                raise answer_to(error) from error
            if fault(error) is not Fault.MEMORY or (merge is not None and merge.swapping):
                raise
            lacking = str(error) or type(error).__name__
        if lacking is not None:
            await self._give_up(merge, lacking)
            return False
        self._retry_s, self.merge_error = RETRY_S, None
        if merge is None:
            self._rest_s = 0.0
            return False
        self._rest_s = asyncio.get_running_loop().time() - started  # a trickle of updates is not to cost a core
        self._metrics.catalog_merge_seconds.observe(self._rest_s)
        self._waiting.set()  # more may have come meanwhile
        await on_a_thread(merge.discard, MERGE_THREAD)
        return True

    async def _give_up(self, merge: Merge | None, lacking: str) -> None:
        """A worker that ended here would find the same updates when it is started again, as all others do."""
        self._rest_s, self._retry_s = self._retry_s, min(2 * self._retry_s, LONGEST_RETRY_S)
        self._waiting.set()
        self.merge_error = f"no memory for a merge: {lacking}"
        self._metrics.catalog_merges_failed.inc()
        logger.error(
            "%s, offset %d: %s. Of what waits only a delta is recommended; the next try is in %.0f s",
            *(self._partition.topic, self.position, self.merge_error, self._rest_s),
        )
        if merge is not None:
            await self._on_device(merge.abandon)
            await on_a_thread(merge.discard, MERGE_THREAD)

    async def _on_device(self, action: Callable[[], T]) -> T:
        run = self._device.between_batches if self.serves else self._device.call
        return await asyncio.wrap_future(run(action))


def read_update(
    record: Any, codes: Sequence[int] | None, max_bytes: int
) -> tuple[CatalogUpdate | None, InvalidInput | None]:
    """The update that a record means (None: it is of no item), and what is wrong with the record. `codes`: what a
    semantic ID must fit; None: anything."""
    try:
        message = None if record.value is None else codec.decode(record.value, max_bytes)
        update = protocol.parse_update(message, record.key)
        if codes is not None:
            update.check(codes)
        return update, None
    except InvalidInput as error:
        wrong = error
    try:
        return CatalogUpdate(protocol.updated_item(record.key), None), wrong
    except InvalidInput:
        return None, wrong
