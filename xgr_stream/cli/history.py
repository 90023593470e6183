"""`xgr-stream history`: bring histories in, look at one, start anew."""

from __future__ import annotations

import click

from xgr_stream.cli.lazy import LazyGroup

COMMANDS = {
    "import": "Write events from a Parquet file into the events topic.",
    "inspect": "What the changelog holds of one user.",
    "reset": "Delete all histories: every record of the changelog.",
}


class HistoryGroup(LazyGroup):
    """`import` is no name for a module."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        from xgr_stream.cli import histories

        command: click.Command = getattr(histories, f"{cmd_name}_history")
        return command


@click.command(cls=HistoryGroup, package="xgr_stream.cli", summaries=COMMANDS)
def history() -> None:
    """Bring histories in, look at one, start anew."""
