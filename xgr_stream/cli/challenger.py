"""The options that name a second version of the model, and the config that they make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from xgr_stream.config import MIB, ChallengerConfig, Role

_DIRECTORY = click.Path(exists=True, file_okay=False)

_OPTIONS = (
    click.option("--canary", type=_DIRECTORY, help="A second checkpoint, which serves a fraction of the users."),
    click.option("--shadow", type=_DIRECTORY, help="A second checkpoint, which is only compared with the first."),
    click.option("--fraction", default=0.05, type=click.FloatRange(0, 1), help="Its share of the users."),
    click.option("--challenger-catalog", type=click.Path(exists=True), help="Its catalog, if it is not --catalog."),
    click.option(
        "--challenger-topic", metavar="NAME", help="Its catalog's updates, if they are not the first model's."
    ),
    click.option("--challenger-cache-mib", default=512, type=click.IntRange(1), help="Memory for its users' prefixes."),
)


def challenger_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets `challenger` for them, None if there is to be none."""

    @functools.wraps(command)
    def challenged(
        *,
        canary: str | None,
        shadow: str | None,
        fraction: float,
        challenger_catalog: str | None,
        challenger_topic: str | None,
        challenger_cache_mib: int,
        **options: Any,
    ) -> Any:
        if canary is not None and shadow is not None:
            raise click.UsageError("there may be --canary or --shadow, not both: one second version at a time")
        model, challenger = canary or shadow, None
        if model is not None:
            role: Role = "shadow" if canary is None else "canary"
            cache_bytes = challenger_cache_mib * MIB
            challenger = ChallengerConfig(model, role, fraction, challenger_catalog, challenger_topic, cache_bytes)
        return command(challenger=challenger, **options)

    for option in reversed(_OPTIONS):
        challenged = option(challenged)
    return challenged
