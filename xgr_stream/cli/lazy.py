"""Groups of subcommands, each imported only when it is run, so that `--help` needs no torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from xgr_stream.errors import XgrError


class LazyGroup(click.Group):
    """Knows its commands by name and summary and loads one when it is called: the function of that name, with
    underscores for its dashes, in the module of that name in `package`."""

    def __init__(self, *args: Any, package: str, summaries: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._package = package
        self._summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._summaries:
            return None
        name = cmd_name.replace("-", "_")
        home = f"{self._package}.{name}"
        command = getattr(importlib.import_module(home), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{home}.{name} must be a click command, not {command!r}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self._summaries.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except XgrError as error:
            raise click.ClickException(f"{error.code}: {error}") from error
        except Exception as error:
            clients = sys.modules.get("xgr_stream.stream.connection")  # loaded by commands that talk to brokers
            if clients is None:
                raise
            from aiokafka.errors import KafkaError

            if not isinstance(error, KafkaError):
                raise
            what = "no broker answers" if isinstance(error, clients.UNREACHABLE) else "Kafka refuses it"
            raise click.ClickException(f"{what}: {error}") from error
