"""A table's columns, checked once and put into SID order: what a catalog is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xgr_stream.catalog.names import ItemNames
from xgr_stream.catalog.strings import PackedStrings
from xgr_stream.catalog.tags import BoolArray, TagIndex
from xgr_stream.catalog.trie import Int32Array
from xgr_stream.errors import CatalogError
from xgr_stream.types import MAX_ID_CHARS, MAX_ITEM_TAGS

MAX_CODES = 1 << 20
"""Codes of one level, at most."""


class Place(NamedTuple):
    """Where an item stands in a catalog."""

    sid: tuple[int, ...]
    tags: tuple[str, ...]
    """Sorted."""
    available: bool


@dataclass(frozen=True, eq=False)
class ItemColumns:
    """Items by row. A table's are sorted by SID, those that share one by item id; updates put rows behind them."""

    item_ids: PackedStrings | ItemNames
    sids: Int32Array
    """[items, levels]; a row of -1: the item has no place in the catalog."""
    codes: tuple[int, ...]
    tags: TagIndex
    popularity: npt.NDArray[np.float64] | None
    """[items]"""
    available: BoolArray
    """[items]"""

    @classmethod
    def from_places(
        cls, places: Mapping[str, Place], codes: tuple[int, ...], popularity: npt.NDArray[np.float64] | None
    ) -> ItemColumns:
        """Of items that have been checked, in a table's order. `popularity`: [items]."""
        item_ids, in_order = list(places), list(places.values())
        names: dict[str, int] = {}
        pairs = [(names.setdefault(tag, len(names)), row) for row, place in enumerate(in_order) for tag in place.tags]
        tags, rows = np.array(pairs, np.int64).reshape(-1, 2).T
        return cls(
            item_ids=PackedStrings(pa.array(item_ids, pa.large_string())),
            sids=np.array([place.sid for place in in_order], np.int32),
            codes=codes,
            tags=TagIndex.from_pairs(names, tags, rows.astype(np.int32), len(item_ids)),
            popularity=popularity,
            available=np.array([place.available for place in in_order]),
        )

    @classmethod
    def from_arrow(cls, table: pa.Table, codes: int | np.integer[Any] | Sequence[int] | None = None) -> ItemColumns:
        """Check and sort. `codes` per level, one for all or one each; None takes the largest code of each level, plus
        one."""
        if table.num_rows == 0:
            raise CatalogError("the table holds no items; expected at least 1")
        ids = _item_ids(_column(table, "item_id"))
        sids = _sids(table, ids)
        checked_codes = _check_codes(sids, ids, codes)
        order = pc.sort_indices(
            pa.table([*sids.T, ids], names=[*(f"sid_{level}" for level in range(sids.shape[1])), "item_id"]),
            sort_keys=[*((f"sid_{level}", "ascending") for level in range(sids.shape[1])), ("item_id", "ascending")],
        )
        rows = order.to_numpy()
        popularity = _popularity(table, ids)
        return cls(
            item_ids=PackedStrings(ids.take(order)),
            sids=sids[rows].astype(np.int32),
            codes=checked_codes,
            tags=_tags(table, order, ids),
            popularity=None if popularity is None else popularity[rows],
            available=_available(table, ids)[rows],
        )


def _column(table: pa.Table, name: str) -> pa.Array:
    indices = table.schema.get_all_field_indices(name)
    if len(indices) != 1:
        how_many = "no column" if not indices else f"{len(indices)} columns"
        raise CatalogError(f"the table has {how_many} {name!r}, expected one; its columns: {table.column_names}")
    column = table.column(indices[0]).combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _refuse(name: str, bad: npt.NDArray[np.bool_], values: pa.Array, ids: pa.Array, expected: str) -> None:
    """Raise for the first item that `bad` marks, [items]."""
    if bad.any():
        row = int(np.argmax(bad))
        value, item = (_shown(array[row].as_py()) for array in (values, ids))
        raise CatalogError(f"{name} of item {item} (row {row}) is {value}, expected {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_ID_CHARS else f"{text[: MAX_ID_CHARS - 3]}..."


def _is_null(values: pa.Array) -> npt.NDArray[np.bool_]:
    nulls: npt.NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _cast(name: str, values: pa.Array, to: pa.DataType, expected: str) -> pa.Array:
    try:
        return values.cast(to)
    except pa.ArrowException as error:
        raise CatalogError(f"column {name!r} is {values.type}, expected {expected}: {error}") from None


def _item_ids(column: pa.Array) -> pa.Array:
    expected = f"a string of 1 to {MAX_ID_CHARS} characters"
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or _is_integer(column.type)):
        raise CatalogError(f"column 'item_id' is {column.type}, expected strings or integers")
    ids = column.cast(pa.large_string())
    _refuse("item_id", _is_null(ids), ids, ids, expected)
    lengths = pc.utf8_length(ids).to_numpy()
    _refuse("item_id", (lengths < 1) | (lengths > MAX_ID_CHARS), ids, ids, expected)
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = ids.value_counts()
        item, count = counts[int(np.argmax(counts.field("counts").to_numpy()))].values()
        raise CatalogError(f"item_id {item.as_py()!r} occurs {count.as_py()} times, expected every item once")
    return ids


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_strings(kind: pa.DataType) -> bool:
    """Lists of strings, or of nothing at all."""
    if pa.types.is_null(kind):
        return True
    of = kind.value_type if _is_list(kind) else None
    return of is not None and bool(pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_null(of))


def _sids(table: pa.Table, ids: pa.Array) -> npt.NDArray[np.int64]:
    """[items, levels], codes not yet checked."""
    numbered = [name for name in table.column_names if name.startswith("sid_") and name[4:].isdecimal()]
    if "sid" in table.column_names:
        if numbered:
            raise CatalogError(f"the table has a column 'sid' and {numbered}, expected one or the other")
        return _sids_from_lists(_column(table, "sid"), ids)
    if not numbered:
        raise CatalogError(
            f"the table has no column 'sid' nor 'sid_0', 'sid_1', ...; its columns: {table.column_names}"
        )
    return np.stack([_sid_codes(table, level, ids) for level in range(len(numbered))], axis=1)


def _sids_from_lists(column: pa.Array, ids: pa.Array) -> npt.NDArray[np.int64]:
    if not _is_list(column.type) or not _is_integer(column.type.value_type):
        raise CatalogError(
            f"column 'sid' is {column.type}, expected lists of integers (a CSV file has sid_0, sid_1, ...)"
        )
    _refuse("sid", _is_null(column), column, ids, "a list of codes")
    lengths = pc.list_value_length(column).to_numpy()
    levels = int(lengths[0])
    if levels == 0:
        raise CatalogError(f"sid of item {ids[0].as_py()!r} (row 0) is [], expected at least 1 code")
    _refuse("sid", lengths != levels, column, ids, f"{levels} codes, as the first item has")
    flat = column.flatten()
    if flat.null_count:
        _refuse("sid", np.logical_or.reduce(_is_null(flat).reshape(-1, levels), axis=1), column, ids, "integer codes")
    codes: npt.NDArray[np.int64] = _cast("sid", flat, pa.int64(), "lists of 64-bit integers").to_numpy()
    return codes.reshape(-1, levels)


def _sid_codes(table: pa.Table, level: int, ids: pa.Array) -> npt.NDArray[np.int64]:
    name = f"sid_{level}"
    column = _column(table, name)
    if not _is_integer(column.type):
        raise CatalogError(f"column {name!r} is {column.type}, expected integers")
    _refuse(name, _is_null(column), column, ids, "an integer code")
    codes: npt.NDArray[np.int64] = _cast(name, column, pa.int64(), "64-bit integers").to_numpy()
    return codes


def codes_by_level(codes: object, levels: int) -> tuple[int, ...]:
    """`codes` as an argument, one for all levels or one each, NumPy's integers too: as many as there are, each checked.
    Raises `CatalogError`."""
    codes = codes.tolist() if isinstance(codes, np.ndarray | np.integer) else codes
    if isinstance(codes, int):
        codes = (codes,) * levels
    if isinstance(codes, str | bytes) or not isinstance(codes, Sequence):
        raise CatalogError(f"codes is {codes!r}, expected an integer or a sequence of them, one for each level")
    each = tuple(int(of) if isinstance(of, np.integer) else of for of in codes)
    for level, of in enumerate(each):
        if type(of) is not int or not 1 <= of <= MAX_CODES:
            raise CatalogError(f"codes of level {level} is {of!r}, expected an integer from 1 to {MAX_CODES}")
    return each


def _check_codes(sids: npt.NDArray[np.int64], ids: pa.Array, codes: object) -> tuple[int, ...]:
    levels = sids.shape[1]
    limits = codes_by_level(MAX_CODES if codes is None else codes, levels)
    if len(limits) != levels:
        raise CatalogError(f"codes is {limits} ({len(limits)} levels), but the table's SIDs have {levels} levels")
    outside = (sids < 0) | (sids >= np.array(limits))
    if outside.any():
        row, at = divmod(int(np.argmax(outside)), levels)
        raise CatalogError(
            f"sid of item {ids[row].as_py()!r} (row {row}) has code {sids[row, at]} at level {at}, "
            f"expected 0 to {limits[at] - 1}"
        )
    return limits if codes is not None else tuple(int(most) + 1 for most in sids.max(axis=0))


def _tags(table: pa.Table, order: pa.Array, ids: pa.Array) -> TagIndex:
    """An item's tags are a list of strings, or one string with `|` between them (as a CSV file has)."""
    if "tags" not in table.column_names:
        return TagIndex.from_pairs((), np.zeros(0, np.int64), np.zeros(0, np.int32), len(ids))
    column = _column(table, "tags")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.split_pattern(column, "|")
    if not _is_strings(column.type):
        raise CatalogError(
            f"column 'tags' is {column.type}, expected lists of strings, or strings with '|' between tags"
        )
    lists = column.cast(pa.list_(pa.string()))
    tags, counts = lists.flatten(), pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    if tags.null_count:
        _refuse("tags", _holding(counts, _is_null(tags)) > 0, lists, ids, "strings")
    lengths = pc.utf8_length(tags).to_numpy()
    if lengths.max(initial=0) > MAX_ID_CHARS:
        wrong = _holding(counts, lengths > MAX_ID_CHARS) > 0
        _refuse("tags", wrong, lists, ids, f"tags of at most {MAX_ID_CHARS} characters")
    if counts.max(initial=0) > MAX_ITEM_TAGS:
        _refuse("tags", _holding(counts, lengths > 0) > MAX_ITEM_TAGS, lists, ids, f"at most {MAX_ITEM_TAGS} tags")
    lists = lists.take(order)
    tags, rows = lists.flatten(), pc.list_parent_indices(lists).to_numpy()
    named = pc.not_equal(tags, "")
    encoded = tags.filter(named).dictionary_encode()
    rows = rows[named.to_numpy(zero_copy_only=False)]
    return TagIndex.from_pairs(encoded.dictionary.to_pylist(), encoded.indices.to_numpy(), rows, len(ids))


def _holding(counts: npt.NDArray[np.integer], which: BoolArray) -> npt.NDArray[np.intp]:
    """How many of each list's values [lists' values together] these are; `counts`: how long each list is."""
    return np.bincount(np.repeat(np.arange(len(counts)), counts)[which], minlength=len(counts))


def _popularity(table: pa.Table, ids: pa.Array) -> npt.NDArray[np.float64] | None:
    if "popularity" not in table.column_names:
        return None
    values = _cast("popularity", _column(table, "popularity"), pa.float64(), "numbers")
    popularity: npt.NDArray[np.float64] = values.to_numpy(zero_copy_only=False)  # nulls become NaN
    _refuse("popularity", ~np.isfinite(popularity), values, ids, "a finite number")
    return popularity


def _available(table: pa.Table, ids: pa.Array) -> BoolArray:
    if "available" not in table.column_names:
        return np.ones(len(ids), np.bool_)
    column: Any = _column(table, "available")
    if not pa.types.is_boolean(column.type):
        raise CatalogError(f"column 'available' is {column.type}, expected booleans")
    _refuse("available", _is_null(column), column, ids, "true or false")
    available: BoolArray = column.to_numpy(zero_copy_only=False)
    return available
