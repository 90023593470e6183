"""`xgr-stream`: the group of subcommands, each imported only when it is run, so that `--help` needs no torch."""

from __future__ import annotations

import importlib

import click

from xgr_stream import __version__
from xgr_stream.errors import XgrError

SUBCOMMANDS = {
    "bench": "Time the engine and the kernels, each against a baseline.",
    "evaluate": "Recall and NDCG of a checkpoint on a file of sequences.",
    "worker": "Consume events and answer requests, without a Faust app.",
}
"""Name → summary. The command is the function of that name in `xgr_stream/cli/<name>.py`."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and summary and loads one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command = getattr(importlib.import_module(f"xgr_stream.cli.{cmd_name}"), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"xgr_stream.cli.{cmd_name}.{cmd_name} must be a click command, not {command!r}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(SUBCOMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except XgrError as error:
            raise click.ClickException(f"{error.code}: {error}") from error


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="xgr-stream")
def main() -> None:
    """Generative recommendations inside your stream processor."""
