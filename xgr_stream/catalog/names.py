"""Item ids ↔ item rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xgr_stream.catalog.row_table import Int32Array, RowTable
from xgr_stream.catalog.strings import PackedStrings

REMEMBERED = 1 << 17
"""Ids, asked for one by one, whose rows are remembered: 0.1 µs instead of 2 to 4. 20 MB at most."""


class ItemNames(Sequence[str]):
    """Item ids by row: those of a table, and behind them those that updates brought.

    Append-only and shared by all versions of a catalog: a row keeps its item for ever, so that a new version copies no
    strings. What is added goes into a small dictionary. One thread may add while others look up.
    """

    def __init__(self, item_ids: PackedStrings | ItemNames) -> None:
        """Those of a table."""
        self._base: PackedStrings = item_ids._base if isinstance(item_ids, ItemNames) else item_ids
        self._table = RowTable(self._base)
        self._row_of = lru_cache(REMEMBERED)(self._table.row)
        self._added: list[str] = []
        self._added_row_of: dict[str, int] = {}

    def of_table(self) -> ItemNames:
        """Those of the table alone, of which nothing is copied."""
        names = ItemNames.__new__(ItemNames)
        names._base, names._table, names._row_of = self._base, self._table, self._row_of
        names._added, names._added_row_of = [], {}
        return names

    def row(self, item_id: str) -> int | None:
        row = self._row_of(item_id)
        return self._added_row_of.get(item_id) if row < 0 else row

    def rows(self, item_ids: Sequence[str]) -> Int32Array:
        """-1 for an item that has none. [item_ids]"""
        rows = self._table.rows(item_ids)
        if self._added:
            added = self._added_row_of.get
            for other in np.flatnonzero(rows < 0).tolist():
                rows[other] = added(item_ids[other], -1)
        return rows

    def add(self, item_ids: Sequence[str]) -> Int32Array:
        """The rows of these items, new ones of those that have none. [item_ids], each once"""
        rows = self.rows(item_ids)
        for other in np.flatnonzero(rows < 0).tolist():
            rows[other] = row = len(self)
            self._added.append(item_ids[other])
            self._added_row_of[item_ids[other]] = row
        return rows

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> list[str]:
        """The ids of these rows."""
        if len(self._added) and len(rows) and int(rows.max()) >= len(self._base):
            return [self[row] for row in rows.tolist()]
        return self._base.take(rows)

    def to_arrow(self) -> pa.Array:
        base = self._base.to_arrow()
        return pa.concat_arrays((base, pa.array(list(self._added), base.type))) if self._added else base

    def __len__(self) -> int:
        return len(self._base) + len(self._added)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return [self[r] for r in range(*row.indices(len(self)))]
        if row < 0:
            row += len(self)
        return self._base[row] if row < len(self._base) else self._added[row - len(self._base)]
