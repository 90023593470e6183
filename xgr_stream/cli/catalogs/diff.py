"""`xgr-stream catalog diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xgr_stream.cli.broker import broker_options, topic_options
from xgr_stream.cli.catalogs.source import Source, SourceType, load, log_for, writing
from xgr_stream.config import TopicNames

if TYPE_CHECKING:
    from xgr_stream.catalog.diff import Difference
    from xgr_stream.stream.connection import Connection

SHOWN = 20


@click.command()
@click.argument("old", type=SourceType())
@click.argument("new", type=SourceType())
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each item that differs.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A .parquet file that `apply` takes.")
@topic_options
@broker_options
def diff(connection: Connection, topics: TopicNames, old: Source, new: Source, as_json: bool, out: Path | None) -> None:
    """What differs between two SOURCEs (FILE, FILE+OFFSET, FILE+end): the updates that make NEW of OLD.

    An item of OLD's file that NEW has not and that is not to be had in OLD anyway is none: no update takes it away.
    """
    from xgr_stream.catalog.diff import counts, differences

    log = log_for([old, new], connection, topics.catalog)
    found = differences(load(old, log), load(new, log))
    if out is not None:
        _write(found, out)
    for difference in found if as_json else found[:SHOWN]:
        kind, update = difference
        line = {"kind": kind, "item_id": update.item_id, "sid": update.sid, "tags": update.tags}
        click.echo(json.dumps({**line, "available": update.available}, ensure_ascii=False))
    if not as_json:
        more = f", {len(found) - SHOWN:,} more than shown" if len(found) > SHOWN else ""
        click.echo(", ".join(f"{kind} {count:,}" for kind, count in counts(found).items()) + more)


def _write(found: list[Difference], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if path.suffix != ".parquet":
        raise click.BadParameter(f"must end in .parquet, not {path.name!r}", param_hint="--out")
    updates = [update for _, update in found]
    columns = {
        "item_id": pa.array([update.item_id for update in updates], pa.string()),
        "sid": pa.array([update.sid for update in updates], pa.list_(pa.int32())),
        "tags": pa.array([update.tags for update in updates], pa.list_(pa.string())),
        "available": pa.array([update.available for update in updates]),
        "gone": pa.array([update.sid is None for update in updates]),
    }
    with writing(path):
        parquet.write_table(pa.table(columns), path)
