"""A catalog as one Parquet file, and the hashes that name its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.columns import ItemColumns
from xgr_stream.catalog.tags import BoolArray


def content_hash(columns: ItemColumns) -> str:
    """16 hex digits over all but the availability; independent of the order of the table it was read from."""
    digest = hashlib.blake2b(digest_size=8)
    popularity = columns.popularity if columns.popularity is not None else np.zeros(0)
    parts = (
        np.asarray(columns.codes, "<i8"),
        columns.sids.astype("<i4", copy=False),
        *_string_arrays(columns.item_ids),
        *_string_arrays(tuple(columns.tags.index)),
        columns.tags.starts.astype("<i8", copy=False),
        columns.tags.rows.astype("<i4", copy=False),
        popularity.astype("<f8", copy=False),
    )
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _string_arrays(strings: tuple[str, ...]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    lengths = np.fromiter(map(len, strings), "<i4", len(strings))
    return lengths, np.frombuffer("".join(strings).encode(), np.uint8)


def rows_hash(rows: npt.NDArray[np.integer]) -> int:
    """Hash of a set of rows: the exclusive or of each row's own, so that it follows a change in O(rows changed)."""
    mixed = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int(np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(31))))


def save(columns: ItemColumns, available: BoolArray, path: Path, version: str) -> None:
    raise NotImplementedError
