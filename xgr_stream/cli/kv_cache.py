"""The option that says what cached keys and values are kept in."""

from __future__ import annotations

from typing import get_args

import click

from xgr_stream.config import KvCacheDtype

kv_cache_dtype_option = click.option(
    "--kv-cache-dtype",
    type=click.Choice(get_args(KvCacheDtype)),
    default="auto",
    show_default=True,
    help="What cached keys and values are kept in: what the model computes in, or FP8.",
)
