"""`xgr-stream catalog apply`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xgr_stream.cli.broker import broker_options, topic_options
from xgr_stream.cli.catalogs.source import Source, SourceType, load, read_log, write_updates
from xgr_stream.config import TopicNames
from xgr_stream.errors import InvalidUpdate

if TYPE_CHECKING:
    from xgr_stream.catalog.columns import Place
    from xgr_stream.stream.connection import Connection
    from xgr_stream.types import CatalogUpdate


@click.command()
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--catalog",
    "base",
    required=True,
    type=SourceType(file_alone=True),
    help="The file that the workers were started with, of as many codes as the checkpoint.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written.")
@topic_options
@broker_options
def apply(connection: Connection, topics: TopicNames, table: Path, base: Source, dry_run: bool) -> None:
    """Write the rows of TABLE (Parquet, CSV, JSON Lines), one for an item, to the topic of updates, but for those that
    change nothing.

    Columns: `item_id`; `sid` or `sid_0`, `sid_1`, ...; `tags`; `available`; `gone` (true: the item goes). What a row
    leaves out stays as it is served now. `catalog diff --out` makes such a table.
    """
    from xgr_stream.catalog.diff import places_of
    from xgr_stream.catalog.live import target

    served = load(Source(base.path, None, to_end=True), read_log(connection, topics.catalog))
    places = places_of(served)
    updates: list[CatalogUpdate] = []
    rows: dict[str, int] = {}
    for number, row in enumerate(rows_of(table)):
        try:
            update = _update(row, places)
            update.check(served.codes)
            if (first := rows.setdefault(update.item_id, number)) != number:
                raise InvalidUpdate(f"item_id must be of one row alone, and row {first} has it too")
        except InvalidUpdate as error:
            raise click.ClickException(f"row {number} of {table}, item {row.get('item_id')!r}: {error}") from error
        if places.get(update.item_id) != target(served.origin, update):
            updates.append(update)
    if not dry_run:
        write_updates(connection, topics.catalog, updates)
    click.echo(f"{len(updates):,} updates {'would be written' if dry_run else 'written'} to {topics.catalog}")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Each row as a dictionary, `sid_0`, `sid_1`, ... as `sid`, `a|b` as a list."""
    from xgr_stream.catalog.table import read_table

    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    for row in rows:
        codes = [row[f"sid_{level}"] for level in range(len(row)) if f"sid_{level}" in row]
        if any(code is not None for code in codes):
            row["sid"] = codes  # with what is missing, which no semantic ID may be
        if isinstance(row.get("tags"), str):
            row["tags"] = [tag for tag in row["tags"].split("|") if tag]
        if type(row.get("item_id")) is int:
            row["item_id"] = str(row["item_id"])
    return rows


def _update(row: dict[str, Any], places: dict[str, Place]) -> CatalogUpdate:
    from xgr_stream.types import CatalogUpdate

    item_id: Any = row.get("item_id")
    gone = row.get("gone")
    if gone is not None and not isinstance(gone, bool):
        raise InvalidUpdate(f"gone must be true or false, not {gone!r}")
    if gone or not isinstance(item_id, str):  # the update itself says what an id must be
        return CatalogUpdate(item_id, None)
    place = places.get(item_id)
    sid, tags, available = row.get("sid"), row.get("tags"), row.get("available")
    if sid is None and place is None:
        raise InvalidUpdate(f"sid must be given for {item_id!r}, which is not served now")
    return CatalogUpdate(
        item_id,
        place.sid if sid is None and place is not None else sid,
        (place.tags if place is not None else ()) if tags is None else tags,
        (place is None or place.available) if available is None else available,
    )
