"""`xgr-stream catalog build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xgr_stream.cli.broker import broker_options, topic_options
from xgr_stream.cli.catalogs.source import Source, SourceType, load, log_for, writing
from xgr_stream.config import TopicNames

if TYPE_CHECKING:
    from xgr_stream.catalog import Catalog
    from xgr_stream.stream.connection import Connection

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("source", type=SourceType())
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The .parquet file to make."
)
@click.option(
    "--codes", type=click.IntRange(1), multiple=True, help="Codes per level, once for each level, or for all."
)
@click.option("--embeddings", type=_FILE, help="A .npy file [items, dim], rows as SOURCE's: semantic IDs by k-means.")
@click.option("--levels", default=3, type=click.IntRange(1), help="Of semantic IDs made of embeddings.")
@click.option("--unique", is_flag=True, help="No two items share a semantic ID that is made of embeddings.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the k-means.")
@topic_options
@broker_options
def build(
    connection: Connection,
    topics: TopicNames,
    source: Source,
    out: Path,
    codes: tuple[int, ...],
    embeddings: Path | None,
    levels: int,
    unique: bool,
    seed: int,
) -> None:
    """Make a catalog file of SOURCE: a table of items (Parquet, CSV, JSON Lines) with semantic IDs or --embeddings, or
    FILE+end, a new file of what is served now."""
    from xgr_stream.catalog import Catalog

    if source.reads_topic and (codes or embeddings is not None):
        option = "--codes" if embeddings is None else "--embeddings"
        raise click.UsageError(f"{option} must not be given with FILE+OFFSET and FILE+end, which keep the file's codes")
    if not out.parent.is_dir():  # said now, and not after all the work
        raise click.BadParameter(f"must be in a directory that there is, not {str(out)!r}", param_hint="--out")
    if embeddings is not None:
        catalog = _from_embeddings(source.path, embeddings, levels, codes, unique=unique, seed=seed)
    elif not codes:
        catalog = load(source, log_for([source], connection, topics.catalog))
    else:
        catalog = Catalog.from_table(source.path, codes=codes[0] if len(codes) == 1 else codes)
    with writing(out):
        catalog.save(out)
    saved = Catalog.load(out)
    click.echo(f"{saved.num_items:,} items, version {saved.version}, in {out}")


def _from_embeddings(
    table_path: Path, path: Path, levels: int, codes: tuple[int, ...], *, unique: bool, seed: int
) -> Catalog:
    from zipfile import BadZipFile

    import numpy as np

    from xgr_stream.catalog import Catalog
    from xgr_stream.catalog.table import read_table

    if not codes:
        raise click.UsageError("--codes must be given with --embeddings")
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, BadZipFile) as error:
        raise click.ClickException(f"{path} must be a .npy file of numbers: {error}") from error
    if not isinstance(vectors, np.ndarray):
        raise click.ClickException(f"{path} must be a .npy file of one array, not of several")
    table = read_table(table_path)
    if "item_id" not in table.column_names:
        raise click.ClickException(f"{table_path} must have a column item_id; it has {', '.join(table.column_names)}")
    columns = {
        name: table[name].to_pylist() for name in ("tags", "popularity", "available") if name in table.schema.names
    }
    return Catalog.from_embeddings(
        table["item_id"].to_pylist(),
        vectors,
        levels=levels,
        codes=codes[0] if len(codes) == 1 else codes,
        seed=seed,
        unique=unique,
        columns=columns,
    )
