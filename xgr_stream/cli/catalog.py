"""`xgr-stream catalog`: make one, look at one, compare two, change what is served, go back."""

from __future__ import annotations

import click

from xgr_stream.cli.lazy import LazyGroup

COMMANDS = {
    "apply": "Write a table of changes to the topic of updates.",
    "build": "Make a catalog file of a table, of embeddings, or of a file and its updates.",
    "diff": "What differs between two catalogs or versions.",
    "inspect": "Sizes, levels, collisions, dead branches, codes without items.",
    "rollback": "Have the workers serve an earlier version, or another file's content.",
}


@click.command(cls=LazyGroup, package="xgr_stream.cli.catalogs", summaries=COMMANDS)
def catalog() -> None:
    """Make a catalog, look at one, compare two, change what is served, go back.

    A SOURCE is a catalog file or a table; with +OFFSET behind it, as in catalog.parquet+1042, the version that workers
    with this file serve at this offset of the topic of updates; with +end, what they serve now.
    """
