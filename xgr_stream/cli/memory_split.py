"""How the memory of a worker is split, by what `bench engine` saw on its card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xgr_stream.errors import ConfigError

KEPT_FREE = 1 / 16
"""Of the device's memory, that nothing is to take: the driver has some, and a worker captures graphs of all sizes, not
of those alone that were measured. `bench kv-cache` fills an H200 but for so much."""


@dataclass(frozen=True, slots=True)
class Split:
    """MiB of one worker, and the users that they are for."""

    model_mib: int
    """Weights, catalog and work space."""
    free_mib: int
    cache_mib: int
    """What is left, for prefixes."""
    warm: int
    """Active users whose prefix the device holds."""
    host: int
    """Of the others, those whose prefix host memory holds."""


def split(
    rows: Sequence[Mapping[str, object]], device_mib: float, host_mib: float, user_mib: float, users: int
) -> Split:
    """`users`: who are active on one worker. Raises `ConfigError`."""
    model_mib = math.ceil(max(_mib(row, "peak_mib") - _mib(row, "cache_mib") for row in rows))
    free_mib = math.ceil(device_mib * KEPT_FREE)
    cache_mib = math.floor(device_mib) - model_mib - free_mib
    if cache_mib < user_mib:
        raise ConfigError(
            f"device_gib must hold weights, catalog and work space ({model_mib} MiB), {free_mib} MiB that are kept "
            f"free and a user's prefix ({user_mib:.1f} MiB), not {device_mib / 1024:g}"
        )
    warm = min(users, int(cache_mib / user_mib))
    return Split(model_mib, free_mib, cache_mib, warm, min(users - warm, int(host_mib / user_mib)))


def user_mib_of(rows: Sequence[Mapping[str, object]]) -> float:
    """What one user takes, at the context of the rows. Raises `ConfigError`."""
    return max(_mib(row, "user_mib") for row in rows)


def _mib(row: Mapping[str, object], name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(
            f"{name} of each row must be a number above 0, not {value!r}: `xgr-stream bench engine` writes it "
            "on a CUDA device"
        )
    return float(value)
