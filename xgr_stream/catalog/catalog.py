"""The catalog: items, their semantic IDs, which of them are live, and what a filter leaves of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog import storage
from xgr_stream.catalog.columns import ItemColumns
from xgr_stream.catalog.filters import FilterResolver, ResolvedFilter
from xgr_stream.catalog.legal import BoolArray, LegalItems
from xgr_stream.catalog.quantize import residual_kmeans
from xgr_stream.catalog.table import Columns, read_table
from xgr_stream.catalog.trie import Int32Array, Trie
from xgr_stream.errors import CatalogError
from xgr_stream.types import ItemFilter


class Catalog:
    """Items in SID order (an item's row is its position), with availability that can change.

    Not thread-safe: `set_available` and `resolve` belong to the thread that decodes, between its batches. What never
    changes (`row`, `sid`, `rows`, `sids`, `trie`, `codes`) may be read from any thread.
    """

    def __init__(self, columns: ItemColumns) -> None:
        self.codes = columns.codes
        self.levels = len(columns.codes)
        self.num_items = len(columns.item_ids)
        self.item_ids = columns.item_ids
        self.sids = columns.sids
        """[items, levels]"""
        self.trie = Trie.from_sids(columns.sids, columns.codes)
        self.base_version = storage.content_hash(columns)
        """Hash of all but the availability. Catalogs of one base version give every item the same tokens."""
        self.revision = 0
        """Grows with every change of availability of this object."""
        self._columns = columns
        self._row_of = {item_id: row for row, item_id in enumerate(columns.item_ids)}
        self._live = LegalItems(self.trie, columns.available.copy())
        self._filters = FilterResolver(self.trie, columns.tags, self._live)
        self._away = storage.rows_hash(np.flatnonzero(~columns.available))
        self._by_popularity: Int32Array | None = None
        if columns.popularity is not None:
            self._by_popularity = np.argsort(-columns.popularity, kind="stable").astype(np.int32)

    @classmethod
    def from_table(cls, source: Columns, *, codes: Sequence[int] | None = None) -> Catalog:
        """Build from a Parquet, CSV or JSON Lines file, an Arrow table or a mapping of columns.

        Columns: `item_id`; `sid` (lists of codes) or `sid_0`, `sid_1`, ...; optionally `tags` (lists of strings, or
        one string with `|` between them), `popularity` (numbers) and `available` (booleans). Others are ignored.
        `codes`: codes per level, for a model that has more of them than the table uses.
        """
        return cls(ItemColumns.from_arrow(read_table(source), codes))

    @classmethod
    def from_embeddings(
        cls,
        item_ids: Sequence[str],
        embeddings: npt.ArrayLike,
        *,
        levels: int,
        codes: int | np.integer[Any] | Sequence[int],
        seed: int = 0,
        unique: bool = False,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Catalog:
        """Build with SIDs made of `embeddings` [items, dim] by residual k-means, `codes` per level (one for all, or
        one each).

        Near items may share a SID; with `unique` the last level is reassigned so that none do. `columns`: `tags`,
        `popularity`, `available`, as `from_table` takes them.
        """
        each = (codes,) * levels if isinstance(codes, int | np.integer) else tuple(codes)
        per_level = tuple(int(c) if isinstance(c, np.integer) else c for c in each)
        if len(per_level) != levels:
            raise CatalogError(f"codes is {per_level}, expected one number or {levels}, as many as levels")
        sids = residual_kmeans(embeddings, per_level, seed=seed, unique=unique)
        numbered = {f"sid_{level}": sids[:, level] for level in range(levels)}
        return cls.from_table({**(columns or {}), "item_id": item_ids, **numbered}, codes=per_level)

    @classmethod
    def load(cls, path: str | Path) -> Catalog:
        """Load what `save` wrote, checked against its hash, or a table as `from_table` takes it."""
        table = read_table(path)
        header = storage.read_header(table)
        if header is None:
            return cls.from_table(table)
        catalog = cls(ItemColumns.from_arrow(table, header.codes))
        if catalog.version != header.version:
            raise CatalogError(
                f"catalog {str(path)!r} holds version {catalog.version}, expected {header.version} by its header: "
                "the file was damaged or edited"
            )
        return catalog

    @property
    def version(self) -> str:
        """Names the content, availability included: equal on every worker that holds the same."""
        return f"{self.base_version}.{self._away:x}"

    @property
    def available(self) -> BoolArray:
        """[items]; do not write to it."""
        return self._live.items

    @property
    def live_counts(self) -> tuple[Int32Array, ...]:
        """[d]: live items below each node of depth d, [nodes of depth d]; do not write to it."""
        return self._live.counts

    def row(self, item_id: str) -> int | None:
        return self._row_of.get(item_id)

    def rows(self, item_ids: Sequence[str]) -> Int32Array:
        """The row of each item, -1 where the catalog does not know it, [items asked for]."""
        row_of = self._row_of
        return np.fromiter((row_of.get(item_id, -1) for item_id in item_ids), np.int32, len(item_ids))

    def sid(self, item_id: str) -> tuple[int, ...] | None:
        row = self._row_of.get(item_id)
        return None if row is None else tuple(self.sids[row].tolist())

    def set_available(self, item_ids: Iterable[str], available: bool) -> None:
        """Let items come or go, in O(levels) each. Mutates; filters resolved before are no longer valid."""
        if isinstance(item_ids, str):
            raise CatalogError(f"item_ids must be a collection of item ids, not {item_ids!r}")
        unique = sorted(set(item_ids))
        rows = self.rows(unique)
        if (rows < 0).any():
            raise CatalogError(f"item_id {unique[int(np.argmin(rows))]!r} is not in the catalog, expected a known item")
        rows = rows[self._live.items[rows] != available]
        if len(rows) == 0:
            return
        self._filters.flip(rows, available)
        self._away ^= storage.rows_hash(rows)
        self.revision += 1

    def resolve(self, item_filter: ItemFilter) -> ResolvedFilter:
        """What the filter leaves; the node masks of recent tag combinations are kept."""
        rows = self.rows(item_filter.exclude)
        return self._filters.resolve(item_filter, rows[rows >= 0])

    def items_at(self, leaves: Int32Array, resolved: ResolvedFilter) -> tuple[Int32Array, Int32Array]:
        """The items at these leaves that may be returned: (position in `leaves`, item row), both [items found], in
        the order of `leaves`, then of rows. A leaf of -1 (a beam that found nothing) has none."""
        starts = self.trie.item_starts
        # A loop: a request has few leaves, and nearly all of them one item (10 leaves: 5 µs, in NumPy 30).
        found = [
            (position, row)
            for position, leaf in enumerate(leaves.tolist())
            if leaf >= 0
            for row in range(starts[leaf], starts[leaf + 1])
        ]
        positions, rows = np.array(found, np.int32).reshape(-1, 2).T
        allowed = resolved.allows(rows)
        return positions[allowed], rows[allowed]

    def popular(self, k: int, resolved: ResolvedFilter) -> Int32Array:
        """The rows of the k most popular items that may be returned, [at most k]; none if the table named no
        popularity. Equal ones in row order."""
        if self._by_popularity is None:
            return np.zeros(0, np.int32)
        ahead = k + len(resolved.excluded)
        while True:  # usually the first items of the order are enough
            candidates = self._by_popularity[:ahead]
            found = candidates[resolved.allows(candidates)][:k]
            if len(found) == k or len(candidates) == self.num_items:
                return found
            ahead *= 8

    def save(self, path: str | Path) -> None:
        """Write one Parquet file, current availability included; `load` checks it against its own hash."""
        storage.save(self._columns, self._live.items, Path(path), self.version)

    def check_integrity(self) -> None:
        """Raise `CatalogError` if counts, masks or the version are not what a rebuild gives."""
        self._filters.check_integrity()
        if self._away != storage.rows_hash(np.flatnonzero(~self._live.items)):
            raise CatalogError("the version does not match the availability")
