"""Tables of items: Parquet, CSV and JSON Lines files, or columns in memory, as one Arrow table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from xgr_stream.errors import CatalogError

Columns: TypeAlias = str | Path | Mapping[str, Sequence[Any]] | pa.Table
"""A file, or the columns themselves."""

_STRINGS = pa.list_(pa.string())
_JSON_BLOCK_BYTES = 16 << 20
"""A row must fit: arrow's own megabyte refuses a user of 100,000 events."""


def read_table(source: Columns) -> pa.Table:
    """The table of items, columns unchecked; `CatalogError` names what cannot be read."""
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, Mapping):
        return _from_columns(source)
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CatalogError(f"catalog {str(path)!r} must be a file that ends in one of {sorted(_READERS)}")
    try:
        table = reader(path)
        table.validate(full=True)  # offsets in bounds, strings UTF-8: a damaged file ends here
        return table
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last: of a damaged column's name
        raise CatalogError(f"catalog {str(path)!r} cannot be read as a {path.suffix} file: {error}") from error


def _from_columns(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise CatalogError(f"column {name!r} cannot be read, expected values of one type: {error}") from error
    try:
        return pa.table(arrays)
    except pa.ArrowException as error:
        lengths = {name: len(array) for name, array in arrays.items()}
        raise CatalogError(f"columns have lengths {lengths}, expected equal ones: {error}") from error


def _is_ours(name: str) -> bool:
    return name in ("item_id", "sid", "tags", "popularity", "available", "gone") or name.startswith("sid_")


def _read_parquet(path: Path) -> pa.Table:
    with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=[name for name in file.schema_arrow.names if _is_ours(name)])


def _read_csv(path: Path) -> pa.Table:
    # Item ids stay strings, so that "007" is not read as 7.
    types = {"item_id": pa.string(), "tags": pa.string(), "available": pa.bool_(), "gone": pa.bool_()}
    return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=types))


def read_json_lines(path: Path) -> pa.Table:
    """Rows of up to `_JSON_BLOCK_BYTES`. What looks like a date stays a string, where arrow would read a timestamp."""
    options = pa.json.ReadOptions(block_size=_JSON_BLOCK_BYTES)
    table = pa.json.read_json(path, read_options=options)
    dates = [field for field in table.schema if _holds_dates(field.type)]
    if not dates:
        return table
    schema = pa.schema([(f.name, pa.string() if pa.types.is_timestamp(f.type) else _STRINGS) for f in dates])
    return pa.json.read_json(path, options, pa.json.ParseOptions(explicit_schema=schema))


def _holds_dates(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind.value_type if pa.types.is_list(kind) else kind))


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
}
