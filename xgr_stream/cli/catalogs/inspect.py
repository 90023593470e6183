"""`xgr-stream catalog inspect`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from xgr_stream.cli.broker import broker_options, topic_options
from xgr_stream.cli.catalogs.source import Source, SourceType, load, log_for
from xgr_stream.config import TopicNames

if TYPE_CHECKING:
    from xgr_stream.stream.connection import Connection


@click.command()
@click.argument("source", type=SourceType())
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
@topic_options
@broker_options
def inspect(connection: Connection, topics: TopicNames, source: Source, as_json: bool) -> None:
    """Sizes, levels, collisions, dead branches, codes without items of SOURCE (FILE, FILE+OFFSET, FILE+end)."""
    from xgr_stream.catalog.inspection import inspect as figures_of

    figures = figures_of(load(source, log_for([source], connection, topics.catalog)))
    if as_json:
        click.echo(json.dumps(figures))
        return
    levels = figures.pop("levels")
    for name, value in figures.items():
        click.echo(f"{name.replace('_', ' '):22} {value:,}" if isinstance(value, int) else f"{name:22} {value}")
    for number, level in enumerate(levels):
        listed = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in level.items())
        click.echo(f"level {number}: {listed}")
