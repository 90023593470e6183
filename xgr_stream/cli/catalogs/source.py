"""Catalogs as the command line names them, and updates from and to the topic."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from xgr_stream.cli.writing import Message, write_all
from xgr_stream.errors import CatalogError, InvalidUpdate

if TYPE_CHECKING:
    from xgr_stream.catalog import Catalog
    from xgr_stream.stream.connection import Connection
    from xgr_stream.types import CatalogUpdate

POLL_MS = 500
MAX_MESSAGE_BYTES = 1 << 20
"""What a producer sends, and what a worker reads."""
RECORD_BYTES = 128
"""What a record and its batch take besides key and value, at most."""


class Source(NamedTuple):
    """A catalog's file, and how much of the topic is applied to it."""

    path: Path
    offset: int | None
    """None: nothing."""
    to_end: bool = False

    @property
    def reads_topic(self) -> bool:
        return self.offset is not None or self.to_end


class Log(NamedTuple):
    """What the topic holds from its beginning."""

    updates: list[CatalogUpdate]
    offsets: list[int]
    timestamps_ms: list[int]
    end: int

    def upto(self, offset: int) -> list[CatalogUpdate]:
        """The updates before this offset."""
        return [update for update, at in zip(self.updates, self.offsets, strict=True) if at < offset]


class SourceType(click.ParamType):
    name = "source"

    def __init__(self, *, file_alone: bool = False) -> None:
        self._file_alone = file_alone

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Source:
        if isinstance(value, Source):
            return value
        found = None if Path(value).is_file() else re.fullmatch(r"(.+)\+(\d+|end)", value)
        path, at = (value, None) if found is None else (found[1], found[2])
        if not Path(path).is_file():
            self.fail(f"must be a file, FILE+OFFSET or FILE+end, and there is no file {path!r}", param, ctx)
        if self._file_alone and at is not None:
            self.fail(f"must be a file alone, and {value!r} has updates too", param, ctx)
        return Source(Path(path), None if at in (None, "end") else int(at), at == "end")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a line that the file can't be written."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise click.ClickException(f"{path} cannot be written: {error}") from error


def load(source: Source, log: Log | None) -> Catalog:
    """The catalog at this version. `log` must be there if it reads the topic. The file's codes are taken to be the
    checkpoint's."""
    from xgr_stream.catalog import Catalog
    from xgr_stream.catalog.live import updated

    base = Catalog.load(source.path)
    if not source.reads_topic:
        return base
    if log is None:
        raise CatalogError("the topic of updates must be read for FILE+OFFSET, and it was not")
    offset = log.end if source.offset is None else source.offset
    if offset > log.end:
        raise CatalogError(f"offset must be at most {log.end}, where the topic of updates ends, not {offset}")
    updates, wrong = _as_served(log.upto(offset), base.codes)
    if wrong:
        misfits = f"{len(wrong):,} updates do not fit the codes of {source.path}"
        click.echo(f"{misfits} and count as tombstones, the last of {wrong[-1]}", err=True)
    return updated(base, updates, offset)


def _as_served(updates: Sequence[CatalogUpdate], codes: Sequence[int]) -> tuple[list[CatalogUpdate], list[str]]:
    """What workers make of them, and what is wrong with those that do not fit the codes and that no later one of their
    items has replaced: they count as tombstones."""
    from xgr_stream.types import CatalogUpdate

    served, wrong = list[CatalogUpdate](), dict[str, str]()
    for update in updates:
        wrong.pop(update.item_id, None)
        try:
            update.check(codes)
            served.append(update)
        except InvalidUpdate as error:
            served.append(CatalogUpdate(update.item_id, None))
            wrong[update.item_id] = f"{update.item_id!r}: {error}"
    return served, list(wrong.values())


def read_log(connection: Connection, topic: str) -> Log:
    """The topic as workers read it, to its end. Raises `CatalogError` if there is none."""
    return asyncio.run(_read_log(connection, topic))


async def _read_log(connection: Connection, topic: str) -> Log:
    from aiokafka import TopicPartition

    from xgr_stream.stream.catalog_feed import read_update

    await _check_topic(connection, topic)
    log = Log([], [], [], 0)
    partition = TopicPartition(topic, 0)
    consumer = connection.consumer(isolation_level="read_committed")
    await consumer.start()
    try:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        last = 0
        while await consumer.position(partition) < end:
            for record in (await consumer.getmany(partition, timeout_ms=POLL_MS)).get(partition, []):
                update, _ = read_update(record, None, MAX_MESSAGE_BYTES)
                last = record.offset + 1
                if update is not None:
                    log.updates.append(update)
                    log.offsets.append(record.offset)
                    log.timestamps_ms.append(record.timestamp)
    finally:
        await consumer.stop()
    return log._replace(end=last)


async def _check_topic(connection: Connection, topic: str) -> None:
    admin = connection.admin()
    await admin.start()
    try:
        if topic not in await admin.list_topics():
            raise CatalogError(f"topic {topic} must exist, and it does not: start a worker, or docker/create-topics.sh")
    finally:
        await admin.close()


def write_updates(connection: Connection, topic: str, updates: Sequence[CatalogUpdate]) -> None:
    """Returns when the broker has them all. Nothing is written if one of them is too large."""
    asyncio.run(_write(connection, topic, updates))


async def _write(connection: Connection, topic: str, updates: Sequence[CatalogUpdate]) -> None:
    from xgr_stream.stream import codec, protocol

    await _check_topic(connection, topic)
    messages = []
    for update in updates:
        key, value = update.item_id.encode(), protocol.update_message(update)
        data = None if value is None else codec.encode(value, "msgpack")
        if (size := len(key) + len(data or b"") + RECORD_BYTES) > MAX_MESSAGE_BYTES:
            raise InvalidUpdate(
                f"{update.item_id!r} takes {size:,} bytes as a record, and {MAX_MESSAGE_BYTES:,} are the most "
                "(nothing was written)"
            )
        messages.append(Message(key, data, 0))
    await write_all(connection, topic, messages)


def log_for(sources: Sequence[Source], connection: Connection, topic: str) -> Log | None:
    """The topic's content, if one of the sources needs it."""
    return read_log(connection, topic) if any(source.reads_topic for source in sources) else None
