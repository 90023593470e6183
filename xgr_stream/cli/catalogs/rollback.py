"""`xgr-stream catalog rollback`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import click

from xgr_stream.cli.broker import broker_options, topic_options
from xgr_stream.cli.catalogs.source import Log, Source, SourceType, load, read_log, write_updates
from xgr_stream.config import TopicNames

if TYPE_CHECKING:
    from xgr_stream.stream.connection import Connection


@click.command()
@click.argument("to", type=SourceType())
@click.option(
    "--catalog",
    "base",
    type=SourceType(file_alone=True),
    help="The file that the workers were started with.  [default: TO's]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written.")
@click.option("--force", is_flag=True, help="Even if compaction may have taken what the version was made of.")
@topic_options
@broker_options
def rollback(
    connection: Connection, topics: TopicNames, to: Source, base: Source | None, dry_run: bool, force: bool
) -> None:
    """Have the workers serve what TO holds (FILE+OFFSET, or a FILE), by the updates that undo what came since.

    The topic goes forward: what is served then has a new version, with the content of the old one.
    """
    from xgr_stream.catalog.diff import counts, differences

    log = read_log(connection, topics.catalog)
    if to.offset is not None and not force:
        _check_compaction(connection, topics.catalog, log, to.offset)
    now = load(Source((base or to).path, None, to_end=True), log)
    found = differences(now, load(to, log))
    if not dry_run:
        write_updates(connection, topics.catalog, [update for _, update in found])
    click.echo(", ".join(f"{kind} {count:,}" for kind, count in counts(found).items()))
    click.echo(f"{len(found):,} updates {'would be written' if dry_run else 'written'} to {topics.catalog}")


def _check_compaction(connection: Connection, topic: str, log: Log, offset: int) -> None:
    """Refuse a version whose records compaction may have taken: it takes one when a later one of its item has reached
    the topic's `min.compaction.lag.ms`."""
    later = [ms for at, ms in zip(log.offsets, log.timestamps_ms, strict=True) if at >= offset]
    if not later:
        return
    lag_ms = asyncio.run(_compaction_lag_ms(connection, topic))
    age_ms = time.time() * 1000 - min(later)
    if age_ms >= lag_ms:
        raise click.ClickException(
            f"offset {offset} is {age_ms / 3_600_000:.1f} hours back, and compaction keeps everything for "
            f"{lag_ms / 3_600_000:.1f} (min.compaction.lag.ms of {topic}): go back to a file, or use --force"
        )


async def _compaction_lag_ms(connection: Connection, topic: str) -> int:
    from xgr_stream.stream.topic_settings import topic_settings

    admin = connection.admin()
    await admin.start()
    try:
        return int((await topic_settings(admin, topic)).get("min.compaction.lag.ms", 0))
    finally:
        await admin.close()
