"""Snapshots of the partitions' histories: read at a restart, written in the background and on shutdown.

A snapshot must never claim more than the changelog holds, or the next owner would find a gap: it is published only when
everything that its histories rest on is durable. The changelog is read from the position that it had before the first
user was looked at, so nothing is missed; what is read twice changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from xgr_stream.config import HistoryConfig, SnapshotConfig
from xgr_stream.errors import ConfigError, HistoryError, InvalidEvent
from xgr_stream.history import HistoryStore, HistoryView, PackedUsers
from xgr_stream.history.packed import Numbering
from xgr_stream.history.snapshot import Snapshot, SnapshotWriter, Source, Unusable
from xgr_stream.metrics import Metrics
from xgr_stream.stream import changelog
from xgr_stream.stream.connection import Connection, stop_client
from xgr_stream.stream.processor import Processor

logger = logging.getLogger(__name__)

SUFFIX = ".snapshot"
CHUNK_USERS = 512
"""Users who are unpacked, or written, at a time: about a millisecond of the event loop's."""
CHUNK_NAMES = 10_000
UNPACK_PAUSE_S = 0.002
ANCHOR_TIMEOUT_S = 10.0
DURABLE_TIMEOUT_S = 60.0
SHUTDOWN_TIMEOUT_S = 30.0
"""How long the snapshots that are written on shutdown may take."""


class Snapshots:
    """The snapshots of one worker. All on the event loop, but for the work on files and arrays."""

    def __init__(
        self,
        config: SnapshotConfig,
        connection: Connection,
        write: Callable[..., Awaitable[Any]],
        processor: Processor,
        history: HistoryStore,
        *,
        topic: str,
        metrics: Metrics,
    ) -> None:
        """`write`: `Publisher.write`. `topic`: the changelog. Raises `ConfigError` if the directory can't be made."""
        self._config = config
        self._connection = connection
        self._write_record = write
        self._processor = processor
        self._history = history
        self._topic = topic
        self._metrics = metrics
        self._anchors: dict[int, tuple[bytes, int]] = {}
        self._written_at: dict[int, float] = {}
        self._undeletable: set[Path] = set()
        self._writing = asyncio.Lock()
        self._reader: AIOKafkaConsumer | None = None
        self._directory = Path(config.directory)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"snapshots' directory must be one that can be written to: {error}") from error

    def path(self, number: int) -> Path:
        return self._directory / f"{self._topic}-{number}{SUFFIX}"

    async def stop(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await stop_client(reader)

    # Restoring

    async def restore(self, consumer: AIOKafkaConsumer, number: int) -> int | None:
        """Begin a partition's restore with its snapshot: the offset of the changelog to go on from, None if there is
        no snapshot that may be used."""
        try:
            snapshot = await asyncio.to_thread(Snapshot, self.path(number))
        except FileNotFoundError:
            await self.set_anchor(number)
            return None
        except Unusable as error:
            await self._ignore(number, error)
            return None
        with contextlib.closing(snapshot):
            try:
                self._check(snapshot.source, number)
                await self._check_anchor(consumer, snapshot.source)
                numbering = await self._numbering(snapshot)
                packed = await asyncio.to_thread(_all_users, snapshot, numbering)
            except Unusable as error:
                await self._ignore(number, error)
                return None
        source = snapshot.source
        self._processor.begin_restore(number, packed, snapshot.forgotten, snapshot.watermarks)
        self._anchors[number] = (source.anchor, source.anchor_offset)
        self._written_at[number] = time.monotonic()
        return source.position

    async def give_up(self, number: int, error: HistoryError) -> None:
        """The changelog does not go on from the snapshot. A late writer may have left a record before the snapshot's
        position of an event that the snapshot's worker had not come to."""
        self._processor.restart_restore(number)
        await self._ignore(number, Unusable("unfit", str(error)))

    async def _ignore(self, number: int, error: Unusable) -> None:
        logger.warning("snapshot %s is ignored (%s): %s", self.path(number), error.reason, error)
        self._metrics.snapshots_ignored.labels(error.reason).inc()
        await self.set_anchor(number)

    def _check(self, source: Source, number: int) -> None:
        config = self._history.config
        if (source.topic, source.partition) != (self._topic, number):
            raise Unusable("foreign", f"it is of {source.topic}-{source.partition}")
        if HistoryConfig(source.keep_events, source.segment_events) != config:
            raise Unusable(
                "foreign",
                f"it keeps {source.keep_events} events in segments of {source.segment_events}, not as {config}",
            )

    async def _check_anchor(self, consumer: AIOKafkaConsumer, source: Source) -> None:
        """Raise `Unusable` unless the anchor stands in the changelog where it did."""
        log = TopicPartition(self._topic, source.partition)
        consumer.assign([log])
        begin = (await consumer.beginning_offsets([log]))[log]
        end = (await consumer.end_offsets([log]))[log]
        if not begin <= source.position <= end or not begin <= source.anchor_offset < end:
            raise Unusable("foreign", f"the changelog holds offsets {begin} to {end}: it was made anew, or cut")
        consumer.seek(log, source.anchor_offset)
        deadline = time.monotonic() + ANCHOR_TIMEOUT_S
        records: Sequence[object] = ()
        while not records and time.monotonic() < deadline:
            records = (await consumer.getmany(log, timeout_ms=500, max_records=1)).get(log, ())
        found = [(record.offset, record.key, record.value) for record in records]  # type: ignore[attr-defined]
        if found != [(source.anchor_offset, *changelog.anchor(source.anchor))]:
            raise Unusable("foreign", "its anchor is not in the changelog: another topic of that name, or made anew")

    async def _numbering(self, snapshot: Snapshot) -> Numbering:
        """What the snapshot's names are numbered here; the loop is another's in between."""
        numbers: list[int] = []
        for start in range(0, len(snapshot.item_names), CHUNK_NAMES):
            numbers += self._history.item_names.add_all(snapshot.item_names[start : start + CHUNK_NAMES])
            await asyncio.sleep(0)
        try:
            actions = [self._history.add_action(name) for name in snapshot.action_names]
        except InvalidEvent as error:
            raise Unusable("foreign", str(error)) from error
        return Numbering.of(snapshot.item_numbers, numbers, actions)

    async def set_anchor(self, number: int) -> None:
        """Write the record by which later snapshots of this partition will be known."""
        name = uuid.uuid4().bytes
        key, value = changelog.anchor(name)
        written = await self._write_record(self._topic, value, key, partition=number)
        self._anchors[number] = (name, written.offset)

    # Writing

    async def run(self) -> None:
        """Unpack what came from snapshots, and write new ones when they are due. Until cancelled."""
        self._delete_old()
        while True:
            if self._history.unpack_some():
                await asyncio.sleep(UNPACK_PAUSE_S)
                continue
            due = self._due()
            if due is None:
                await asyncio.sleep(min(1.0, self._config.interval_s / 2))
                continue
            await self.write(due, self._config.bytes_per_s)
            self._delete_old()

    def _due(self) -> int | None:
        """The partition whose snapshot is the oldest, if it is old enough."""
        ready = self._processor.assigned - self._processor.restoring
        now = time.monotonic()
        for number in ready:
            self._written_at.setdefault(number, now)
        oldest = min(ready, key=self._written_at.__getitem__, default=None)
        if oldest is None or now - self._written_at[oldest] < self._config.interval_s:
            return None
        return oldest

    async def write_all(self) -> None:
        """One of each partition, at full speed, for at most `SHUTDOWN_TIMEOUT_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
                for number in sorted(self._processor.assigned - self._processor.restoring):
                    await self.write(number)
                return
        logger.warning("not all snapshots were written on shutdown: the next start reads more of the changelog")

    async def write(self, number: int, bytes_per_s: float | None = None) -> bool:
        """Write a partition's snapshot; False if it was lost meanwhile, or the disk or the broker would not have it."""
        async with self._writing:
            self._written_at[number] = time.monotonic()
            try:
                written = await self._write(number, bytes_per_s)
            except (OSError, KafkaError) as error:
                logger.warning("the snapshot of partition %d was not written: %s", number, error)
                self._metrics.snapshots_failed.inc()
                return False
            if written:
                self._metrics.snapshots_written.inc()
            return written

    async def _write(self, number: int, bytes_per_s: float | None) -> bool:
        begun = self._processor.mark(number)
        if begun is None or number not in self._anchors:
            return False
        anchor, anchor_offset = self._anchors[number]
        config = self._history.config
        position = await self._end(number)
        source = Source(self._topic, number, anchor, anchor_offset, position, config.keep_events, config.segment_events)
        forgotten, watermarks = self._history.forgotten(number), self._history.watermarks(number)
        writer = await asyncio.to_thread(SnapshotWriter, self.path(number))
        try:
            ids = await self._latest_first(number)
            for start in range(0, len(ids), CHUNK_USERS):
                views = [view for user_id in ids[start : start + CHUNK_USERS] if (view := self._view(user_id, number))]
                if not begun.partition.held:
                    return False
                if views:
                    num_bytes = await asyncio.to_thread(writer.add, views)
                    if bytes_per_s is not None:
                        await asyncio.sleep(num_bytes / bytes_per_s)
            mark = self._processor.mark(number)
            actions = [self._history.action_names[i] for i in range(len(self._history.action_names))]
            await asyncio.to_thread(writer.finish, source, self._history, actions, forgotten, watermarks)
            if mark is None or mark.partition is not begun.partition:
                return False
            deadline = time.monotonic() + DURABLE_TIMEOUT_S
            while not self._processor.durable(mark):
                if not mark.partition.held or time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.02)
            await asyncio.to_thread(writer.publish)
        finally:
            writer.abandon()
        return True

    def _view(self, user_id: str, number: int) -> HistoryView | None:
        if self._history.partition(user_id) != number:
            return None  # forgotten meanwhile
        return self._history.view(user_id)

    async def _latest_first(self, number: int) -> list[str]:
        """The partition's users, the most recently active first: those who are wanted first share a chunk."""
        ids = self._history.user_ids()
        found: list[tuple[int, str]] = []
        for start in range(0, len(ids), CHUNK_NAMES):
            for user_id in ids[start : start + CHUNK_NAMES]:
                if self._history.partition(user_id) == number:
                    found.append((self._history.user_offset(user_id), user_id))
            await asyncio.sleep(0)
        await asyncio.to_thread(found.sort, reverse=True)
        return [user_id for _, user_id in found]

    async def _end(self, number: int) -> int:
        log = TopicPartition(self._topic, number)
        if self._reader is None:
            reader = self._connection.consumer()
            await reader.start()
            self._reader = reader
        end: int = (await self._reader.end_offsets([log]))[log]
        return end

    def _delete_old(self) -> None:
        """Partitions that went to other workers leave files behind, with users who may have been forgotten since."""
        before = time.time() - self._config.max_age_s
        for path in self._directory.glob(f"{self._topic}-*{SUFFIX}*"):
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
            except FileNotFoundError:
                pass  # another worker was faster
            except OSError as error:
                if path not in self._undeletable:
                    self._undeletable.add(path)
                    logger.warning("%s is old and can't be deleted: %s", path, error)


def _all_users(snapshot: Snapshot, numbering: Numbering) -> list[PackedUsers]:
    return list(snapshot.users(numbering))
