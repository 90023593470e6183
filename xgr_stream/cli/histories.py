"""The commands of `xgr-stream history`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from xgr_stream.cli.broker import broker_options, topic_options
from xgr_stream.cli.writing import Message, write_all
from xgr_stream.config import Codec, HistoryConfig, Partitioner, TopicNames
from xgr_stream.errors import TopologyError, XgrError
from xgr_stream.stream.topic_settings import topic_settings
from xgr_stream.types import check_user_id

if TYPE_CHECKING:
    from xgr_stream.stream.connection import Connection

BATCH_ROWS = 8_192

POLICY_TIMEOUT_S = 30.0
"""For a broker to go by a topic's new settings: it has said yes to them some time before."""


@click.command("import")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--user", "user_column", default="user_id", help="Column of the user's id.")
@click.option("--item", "item_column", default="item_id", help="Column of the item's id.")
@click.option("--action", "action_column", help="Column of the action. Default: `action` where there is one.")
@click.option("--timestamp-ms", "timestamp_column", help="Column of milliseconds since 1970. Default: `timestamp_ms`.")
@click.option("--codec", type=click.Choice(["msgpack", "json"]), default="msgpack")
@click.option("--partitioner", type=click.Choice(["murmur2", "crc32"]), default="murmur2")
@topic_options
@broker_options
def import_history(
    connection: Connection,
    topics: TopicNames,
    path: Path,
    user_column: str,
    item_column: str,
    action_column: str | None,
    timestamp_column: str | None,
    codec: Codec,
    partitioner: Partitioner,
) -> None:
    """Write the rows of a Parquet file into the events topic, in their order: each user's oldest event must come first.

    They are events as any others: running workers take them in, and what is imported twice counts twice. Nothing is
    written if a row of the file is no event.
    """
    columns = (user_column, item_column, action_column, timestamp_column)
    count = asyncio.run(_import(connection, topics, path, columns, codec, partitioner))
    click.echo(f"{count:,} events written to {topics.events}")


async def _import(
    connection: Connection,
    topics: TopicNames,
    path: Path,
    columns: tuple[str, str, str | None, str | None],
    codec: Codec,
    partitioner: Partitioner,
) -> int:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from xgr_stream.stream import codec as codecs
    from xgr_stream.stream import protocol
    from xgr_stream.stream.partitioner import partitioner as placing
    from xgr_stream.types import UserEvent

    try:
        file = parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise click.ClickException(f"{path} cannot be read as a Parquet file: {error}") from error
    names = file.schema_arrow.names
    user, item, action, timestamp = columns
    action = action or ("action" if "action" in names else None)
    timestamp = timestamp or ("timestamp_ms" if "timestamp_ms" in names else None)
    wanted = [name for name in (user, item, action, timestamp) if name is not None]
    if missing := [name for name in wanted if name not in names]:
        raise click.ClickException(f"{path} has the columns {', '.join(names)}, and not {', '.join(missing)}")

    def rows() -> Iterator[dict[str, Any]]:
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise click.ClickException(f"{path} cannot be read: {error} (nothing was written)") from error

    def events() -> Iterator[UserEvent]:
        for number, row in enumerate(rows()):
            try:
                yield UserEvent(
                    row[user],
                    row[item],
                    None if action is None else row[action],
                    None if timestamp is None else row[timestamp],
                )
            except XgrError as error:
                raise click.ClickException(f"row {number} of {path}: {error} (nothing was written)") from error

    place = placing(partitioner, len(await _partitions(connection, topics, "events")))
    for _ in events():  # what is written before a row that is refused would be there twice the next time
        pass

    def message(event: UserEvent) -> Message:
        key = event.user_id.encode()
        return Message(key, codecs.encode(protocol.event_message(event), codec), None if place is None else place(key))

    return await write_all(connection, topics.events, map(message, events()))


@click.command("inspect")
@click.argument("user_id")
@click.option("--partitioner", type=click.Choice(["murmur2", "crc32"]), default="murmur2")
@click.option("--segment-events", default=HistoryConfig().segment_events, type=click.IntRange(1))
@click.option("--keep-events", default=HistoryConfig().keep_events, type=click.IntRange(1))
@topic_options
@broker_options
def inspect_history(
    connection: Connection,
    topics: TopicNames,
    user_id: str,
    partitioner: Partitioner,
    segment_events: int,
    keep_events: int,
) -> None:
    """What the changelog holds of one user, as a line of JSON. Reads the user's whole partition."""
    config = HistoryConfig(keep_events, segment_events)
    check_user_id(user_id)
    found = asyncio.run(_inspect(connection, topics, user_id, partitioner, config))
    click.echo(json.dumps(found, ensure_ascii=False))


async def _inspect(
    connection: Connection, topics: TopicNames, user_id: str, partitioner: Partitioner, config: HistoryConfig
) -> dict[str, Any]:
    from aiokafka import TopicPartition

    from xgr_stream.history import HistoryStore
    from xgr_stream.stream import changelog
    from xgr_stream.stream.partitioner import partitioner as placing

    num_partitions = len(await _partitions(connection, topics, "changelog"))
    consumer = connection.consumer(isolation_level="read_committed")  # of transactional workers too
    await consumer.start()
    try:
        place = placing(partitioner, num_partitions)
        number = 0 if place is None else place(user_id.encode())
        log = TopicPartition(topics.changelog, number)
        consumer.assign([log])
        await consumer.seek_to_beginning(log)
        end = (await consumer.end_offsets([log]))[log]
        store = HistoryStore(config)
        records = 0
        while await consumer.position(log) < end:
            for batch in (await consumer.getmany(log, timeout_ms=1_000)).values():
                for record in batch:
                    if changelog.concerns(record.key, user_id):
                        records += record.value is not None
                        changelog.restore(store, number, record.key, record.value)
    finally:
        await consumer.stop()
    store.finish_restore(number)
    view = store.view(user_id)
    found: dict[str, Any] = {"user_id": user_id, "partition": number, "changelog_records": records}
    if forgotten := store.forgotten(number):
        found["forgotten_at"] = max(forgotten.values())
    if view is None:
        return {**found, "event_count": 0}
    return {
        **found,
        "event_count": view.event_count,
        "first_kept": view.first_number,
        "last_offset": view.last_offset,
        "items": [store.item_names[i] for i in view.items.tolist()],
        "actions": [store.action_names[a] if a >= 0 else None for a in view.actions.tolist()],
    }


@click.command("reset")
@click.option("--yes", is_flag=True, help="Don't ask.")
@topic_options
@broker_options
def reset_history(connection: Connection, topics: TopicNames, yes: bool) -> None:
    """Delete every record of the changelog. Stop all workers first: it is refused while there are any.

    To have histories again, replay the events topic: start the workers under a new group.
    """
    if not yes:
        click.confirm(f"Delete all histories in {topics.changelog} on {connection.bootstrap}?", abort=True)
    deleted = asyncio.run(_reset(connection, topics))
    click.echo(f"{deleted:,} offsets of {topics.changelog} deleted; start the workers under a new group (--group)")


async def _reset(connection: Connection, topics: TopicNames) -> int:
    from aiokafka import TopicPartition
    from aiokafka.admin import RecordsToDelete

    from xgr_stream.stream.groups import working_groups

    topic = topics.changelog
    partitions = [TopicPartition(topic, number) for number in await _partitions(connection, topics, "changelog")]
    consumer = connection.consumer()
    await consumer.start()
    try:
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    finally:
        await consumer.stop()
    admin = connection.admin()
    await admin.start()
    try:
        if groups := await working_groups(admin, topics):
            raise click.ClickException(
                f"workers of group {', '.join(groups)} run on {topics.events}, and what they go on writing would "
                "follow on deleted records: stop them all, reset, and start them under a new group"
            )
        # Kafka deletes records where the policy allows it alone. To alter a topic's settings is to give all of them.
        settings = await topic_settings(admin, topic)
        await _alter(admin, topic, {**settings, "cleanup.policy": "compact,delete"})
        try:
            await _delete(admin, {tp: RecordsToDelete(before_offset=ends[tp]) for tp in partitions if ends[tp]})
        finally:
            await _alter(admin, topic, {**settings, "cleanup.policy": "compact"})
    finally:
        await admin.close()
    return sum(ends[tp] - begins[tp] for tp in partitions)


async def _delete(admin: Any, records: dict[Any, Any]) -> None:
    from aiokafka.errors import PolicyViolationError

    until = time.monotonic() + POLICY_TIMEOUT_S
    while True:
        try:
            await admin.delete_records(records)
            return
        except PolicyViolationError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.1)


async def _alter(admin: Any, topic: str, settings: dict[str, str]) -> None:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=settings)])


async def _partitions(connection: Connection, topics: TopicNames, role: Literal["events", "changelog"]) -> list[int]:
    topic: str = getattr(topics, role)
    admin = connection.admin()
    await admin.start()
    try:
        there = topic in await admin.list_topics()  # to ask for one may create it
        described = (await admin.describe_topics([topic]))[0] if there else None
    finally:
        await admin.close()
    if described is None or described["error_code"] or not described["partitions"]:
        raise TopologyError(f"topic {topic} must exist (--topic {role}=NAME names another)")
    return sorted(partition["partition"] for partition in described["partitions"])
