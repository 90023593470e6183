"""Budgets that are more memory than can be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xgr_stream.errors import ConfigError, is_out_of_memory


@contextmanager
def within_budget(name: str, num_bytes: int) -> Iterator[None]:
    """Raise `ConfigError` that names the setting of `CacheConfig` whose memory can't be had, or not even be counted,
    whatever NumPy and torch call that. A device that fails is no matter of a budget."""
    try:
        yield
    except Exception as error:
        uncounted = isinstance(error, OverflowError | ValueError) or "overflow" in str(error).lower()
        if not (uncounted or is_out_of_memory(error)):
            raise
        raise ConfigError(f"cache.{name} must be memory that there is, not {num_bytes} bytes: {error}") from error
