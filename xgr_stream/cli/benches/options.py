"""Options that several benches share, handed to their commands as two objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, get_args

import click
import torch

from xgr_stream.config import KvCacheDtype
from xgr_stream.errors import ConfigError
from xgr_stream.testing.shapes import SHAPES

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Setting:
    """Which model and catalog are measured, and where they compute."""

    shape: str | None
    model: Path | None
    catalog: Path | None
    levels: int | None
    codes: int | None
    items: int | None
    device: str | None
    dtype: Literal["float32", "bfloat16", "float16"] | None
    fp8: bool
    kv_cache_dtype: KvCacheDtype | None
    """None: `auto`, or what the bench compares."""
    threads: int
    seed: int


@dataclass(frozen=True, slots=True)
class Output:
    """Where the figures go besides the terminal."""

    json: Path | None
    plot: Path | None


_FILE = click.Path(dir_okay=False, path_type=Path)

device_option = click.option("--device", help="Where the model computes.  [default: cuda where there is one, else cpu]")

_SETTING_OPTIONS = (
    click.option("--shape", type=click.Choice(sorted(SHAPES)), help="Random weights of this shape."),
    click.option(
        "--model",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="A checkpoint directory instead of --shape.",
    ),
    click.option(
        "--catalog",
        type=click.Path(exists=True, path_type=Path),
        help="The checkpoint's catalog.  [default: catalog.parquet in --model]",
    ),
    click.option("--levels", type=click.IntRange(1), help="Levels of a semantic ID, with --shape.  [default: 3]"),
    click.option(
        "--codes", type=click.IntRange(2), help="Codes per level, with --shape.  [default: 8192; 16 for tiny]"
    ),
    click.option(
        "--items",
        type=click.IntRange(1),
        help="Random items in the catalog, with --shape.  [default: 1500000, or a quarter of all semantic IDs]",
    ),
    device_option,
    click.option(
        "--dtype", type=click.Choice(DTYPES), help="What it computes in.  [default: bfloat16 on a GPU, else float32]"
    ),
    click.option("--fp8", is_flag=True, help="Weights of the products in FP8."),
    click.option(
        "--kv-cache-dtype",
        type=click.Choice(get_args(KvCacheDtype)),
        help="What cached keys and values are kept in: what the model computes in, or FP8.  [default: auto]",
    ),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads on the CPU."),
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, catalog and histories."
    ),
)
_OUTPUT_OPTIONS = (
    click.option("--json", type=_FILE, help="Also write the figures here."),
    click.option("--plot", type=_FILE, help="Also draw them here, as PNG. Needs matplotlib (the extra `bench`)."),
)


def chosen(device: str | None) -> torch.device:
    """What `device_option` was given, or its default. Raises `ConfigError` for one that is not there."""
    there = torch.cuda.is_available()
    try:
        at = torch.device(device or ("cuda" if there else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device must be cpu, cuda or cuda:N (N from 0), not {device!r}") from error
    if at.type == "cuda" and not there:
        raise ConfigError(f"--device {device} needs a GPU, and torch sees none")
    return at


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a `Setting`, which the command gets as `setting`."""
    return _collected(command, "setting", Setting, _SETTING_OPTIONS)


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of an `Output`, which the command gets as `output`."""
    return _collected(command, "output", Output, _OUTPUT_OPTIONS)


def _collected(
    command: Callable[..., None], name: str, kind: type[Any], options: tuple[Callable[..., Any], ...]
) -> Callable[..., None]:
    @wraps(command)
    def collected(**values: Any) -> None:
        parts = {field.name: values.pop(field.name) for field in fields(kind)}
        command(**{name: kind(**parts)}, **values)

    for option in reversed(options):
        collected = option(collected)
    return collected


def several(name: str, help: str, *, least: int = 1) -> Callable[..., Any]:
    """An integer option that may be given several times; the command gets a tuple, () if it was not given."""
    return click.option(name, type=click.IntRange(least), multiple=True, help=f"{help} May be given several times.")
