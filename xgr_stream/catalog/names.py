"""Item ids ↔ item rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import overload


class ItemNames(Sequence[str]):
    """Item ids by row: those of a table, and behind them those that updates brought.

    Append-only and shared by all versions of a catalog: a row keeps its item for ever, so that a new version copies no
    strings. What is added goes into a small dictionary of its own: a large one that grows holds up every thread. One
    thread may add while others look up.
    """

    def __init__(self, item_ids: Sequence[str]) -> None:
        self._base = item_ids
        self._row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        self._added: list[str] = []
        self._added_row_of: dict[str, int] = {}

    def of_table(self) -> ItemNames:
        """Those of the table alone, of which no string and no dictionary is copied."""
        names = ItemNames.__new__(ItemNames)
        names._base, names._row_of, names._added, names._added_row_of = self._base, self._row_of, [], {}
        return names

    def row(self, item_id: str) -> int | None:
        row = self._row_of.get(item_id)
        return self._added_row_of.get(item_id) if row is None else row

    def rows(self, item_ids: Iterable[str]) -> Iterator[int]:
        """-1 for an item that has none."""
        if not self._added:
            return map(self._row_of.get, item_ids, repeat(-1))
        row, added = self._row_of.get, self._added_row_of.get
        return (at if (at := row(item_id, -1)) >= 0 else added(item_id, -1) for item_id in item_ids)

    def add(self, item_id: str) -> int:
        """The item's row, a new one if it has none."""
        row = self.row(item_id)
        if row is None:
            row = len(self)
            self._added.append(item_id)
            self._added_row_of[item_id] = row
        return row

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
