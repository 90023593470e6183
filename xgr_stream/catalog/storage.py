"""A catalog as one file, and the hashes that name its content.

The file is a table as `Catalog.from_table` takes it, with a header in the Parquet metadata that holds what the columns
do not: the codes per level, and the version that the columns must hash to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from xgr_stream.catalog.columns import ItemColumns
from xgr_stream.catalog.tags import BoolArray
from xgr_stream.errors import CatalogError

FORMAT = 1
_FORMAT, _CODES, _VERSION = b"xgr_catalog_format", b"xgr_catalog_codes", b"xgr_catalog_version"


class Header(NamedTuple):
    codes: tuple[int, ...]
    version: str


def content_hash(columns: ItemColumns) -> str:
    """16 hex digits over all but the availability; independent of the order of the table it was read from."""
    digest = hashlib.blake2b(digest_size=8)
    popularity = columns.popularity if columns.popularity is not None else np.zeros(0)
    item_ids = columns.item_ids.to_arrow()
    parts = (
        np.asarray(columns.codes, "<i8"),
        columns.sids.astype("<i4", copy=False),
        pc.utf8_length(item_ids).to_numpy().astype("<i4"),
        np.frombuffer(item_ids.buffers()[2], np.uint8),
        *_string_arrays(columns.tags.names),
        columns.tags.starts.astype("<i8", copy=False),
        columns.tags.rows.astype("<i4", copy=False),
        popularity.astype("<f8", copy=False),
    )
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _string_arrays(strings: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    lengths = np.fromiter(map(len, strings), "<i4", len(strings))
    return lengths, np.frombuffer("".join(strings).encode(), np.uint8)


def rows_hash(rows: npt.NDArray[np.integer]) -> int:
    """Hash of a set of rows: the exclusive or of each row's own, so that it follows a change in O(rows changed)."""
    if len(rows) == 1:  # ten calls of NumPy take 16 times as long
        return _row_hash(int(rows[0]))
    mixed = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int(np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(31))))


def _row_hash(row: int) -> int:
    every = (1 << 64) - 1
    mixed = (row + 1) * 0x9E3779B97F4A7C15 & every
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & every
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & every
    return mixed ^ mixed >> 31


def save(columns: ItemColumns, available: BoolArray, path: Path, version: str) -> None:
    """Write the file beside its place and move it there, so that a reader never sees half of it."""
    if path.suffix != ".parquet":
        raise CatalogError(f"path is {str(path)!r}, expected a file name that ends in '.parquet'")
    header = {_FORMAT: str(FORMAT), _CODES: json.dumps(columns.codes), _VERSION: version}
    table = as_table(columns, available).replace_schema_metadata(header)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        pa.parquet.write_table(table, part, compression="zstd", write_page_checksum=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_header(table: pa.Table) -> Header | None:
    """The header of a table that `save` wrote; None for any other."""
    metadata = table.schema.metadata or {}
    if metadata.keys().isdisjoint((_FORMAT, _CODES, _VERSION)):
        return None
    try:
        written_format = metadata[_FORMAT].decode()
        header = Header(tuple(json.loads(metadata[_CODES])), metadata[_VERSION].decode())
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogError(f"catalog header is {metadata}, expected its format, codes and version") from error
    if written_format != str(FORMAT):
        raise CatalogError(
            f"catalog format is {written_format!r}, expected '{FORMAT}': build the file again, or upgrade"
        )
    return header


def as_table(columns: ItemColumns, available: BoolArray) -> pa.Table:
    """As `Catalog.from_table` takes it."""
    item_ids = columns.item_ids.to_arrow()[: len(columns.sids)]  # a later merge may have added some
    arrays = {
        "item_id": item_ids if item_ids.nbytes >= 1 << 31 else item_ids.cast(pa.string()),
        "sid": pa.FixedSizeListArray.from_arrays(columns.sids.reshape(-1), columns.sids.shape[1]),
        "available": pa.array(available),
    }
    if columns.popularity is not None:
        arrays["popularity"] = pa.array(columns.popularity)
    if columns.tags.index:
        arrays["tags"] = _tag_lists(columns)
    return pa.table(arrays)


def _tag_lists(columns: ItemColumns) -> pa.Array:
    """The tags of each item, [items] of lists of strings."""
    starts, tags = columns.tags.by_row
    return pa.ListArray.from_arrays(starts.astype(np.int32), pa.array(columns.tags.names).take(pa.array(tags)))
