"""The options that say what the prefix cache may take, and the config that they make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import click

from xgr_stream.config import MIB, CacheConfig, KvCacheDtype

kv_cache_dtype_option = click.option(
    "--kv-cache-dtype",
    type=click.Choice(get_args(KvCacheDtype)),
    default="auto",
    show_default=True,
    help="What cached keys and values are kept in: what the model computes in, or FP8.",
)

_OPTIONS = (
    click.option("--cache-mib", default=512, type=click.IntRange(1), help="Memory for users' prefixes."),
    kv_cache_dtype_option,
    click.option("--host-cache-mib", default=0, type=click.IntRange(0), help="Host memory behind it (0: none)."),
    click.option("--file-cache-mib", default=0, type=click.IntRange(0), help="A local file behind that (0: none)."),
    click.option("--file-cache-dir", type=click.Path(exists=True, file_okay=False), help="Where that file is."),
)


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets `cache` for them."""

    @functools.wraps(command)
    def cached(
        *,
        cache_mib: int,
        kv_cache_dtype: KvCacheDtype,
        host_cache_mib: int,
        file_cache_mib: int,
        file_cache_dir: str | None,
        **options: Any,
    ) -> Any:
        cache = CacheConfig(
            budget_bytes=cache_mib * MIB,
            kv_cache_dtype=kv_cache_dtype,
            host_bytes=host_cache_mib * MIB,
            file_bytes=file_cache_mib * MIB,
            file_directory=file_cache_dir,
        )
        return command(cache=cache, **options)

    for option in reversed(_OPTIONS):
        cached = option(cached)
    return cached
