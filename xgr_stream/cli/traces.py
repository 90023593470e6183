"""The load of a trace: its busiest minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xgr_stream.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

PEAK_MS = 60_000
KINDS = ("event", "request")
COLUMNS = {"timestamp_ms": "integers", "user_id": "strings or integers", "kind": "`event` or `request`"}
"""Name → what it must hold."""


class Peak(NamedTuple):
    """Of the minute with the most requests; users: of the whole trace."""

    requests_per_s: float
    events_per_s: float
    users: int


def peak(path: Path) -> Peak:
    """What comes in the busiest minute of a Parquet file with `COLUMNS`. Raises `ConfigError`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as a Parquet file: {error}") from error
    times, users, kinds = (_column(path, table, name) for name in COLUMNS)
    at = times.to_numpy()
    if not len(at) or at.max() - at.min() < PEAK_MS:
        span = f"{(at.max() - at.min()) / 1000:g} s" if len(at) else "no row"
        raise ConfigError(f"timestamp_ms of {path} must span at least a minute of milliseconds, not {span}")
    requests = np.asarray(kinds.to_pylist()) == "request"
    if not requests.any():
        raise ConfigError(f"kind of {path} must be `request` in some rows, not `event` in all {len(at):,}")
    asked = np.sort(at[requests])
    counts = np.searchsorted(asked, asked + PEAK_MS) - np.arange(len(asked))
    begin = asked[counts.argmax()]
    events = int(((at >= begin) & (at < begin + PEAK_MS) & ~requests).sum())
    return Peak(int(counts.max()) * 1000 / PEAK_MS, events * 1000 / PEAK_MS, len(users.unique()))


def _column(path: Path, table: pa.Table, name: str) -> Any:
    """One of `COLUMNS`, checked."""
    import pyarrow as pa
    import pyarrow.compute as compute

    if name not in table.column_names:
        raise ConfigError(
            f"{path} must have a column {name} of {COLUMNS[name]}; it has {', '.join(table.column_names)}"
        )
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    integers, strings = pa.types.is_integer(column.type), column.type in (pa.string(), pa.large_string())
    if not {"timestamp_ms": integers, "user_id": integers or strings, "kind": strings}[name]:
        first = f", as {column[0].as_py()!r}" if len(column) else ""
        raise ConfigError(f"{name} of {path} must be {COLUMNS[name]}, not {column.type}{first}")
    wrong = compute.is_null(column)
    if name == "kind":
        wrong = compute.or_kleene(wrong, compute.invert(compute.is_in(column, pa.array(KINDS, column.type))))
    if (row := compute.index(wrong, True).as_py()) >= 0:
        raise ConfigError(f"{name} of {path} must be {COLUMNS[name]}, not {column[row].as_py()!r} (row {row})")
    return column
