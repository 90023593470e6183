"""The catalog: items, their semantic IDs, which of them are live, and what a filter leaves of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xgr_stream.catalog import storage
from xgr_stream.catalog.columns import ItemColumns, Place, codes_by_level
from xgr_stream.catalog.delta import Delta
from xgr_stream.catalog.filters import FilterResolver, Int64Array, ResolvedFilter
from xgr_stream.catalog.forest import Forest, JoinedTags
from xgr_stream.catalog.legal import BoolArray, LiveItems, counts_below
from xgr_stream.catalog.names import ItemNames
from xgr_stream.catalog.popularity import Ranking
from xgr_stream.catalog.quantize import residual_kmeans
from xgr_stream.catalog.strings import PackedStrings
from xgr_stream.catalog.table import Columns, read_table
from xgr_stream.catalog.tags import TagIndex
from xgr_stream.catalog.trie import Int32Array, Trie
from xgr_stream.errors import CatalogError
from xgr_stream.types import ItemFilter

FLIPS_REMEMBERED = 1 << 16
"""Items that came or went that are remembered for those who hold masks made of them."""
DELTA_ITEMS = 256
"""Of a delta, at most: to make one of so many takes 2.4 ms (of 1,024: 4.9), before each batch while more come."""
_NO_ROWS: Int32Array = np.zeros(0, dtype=np.int32)
_NO_ITEMS: BoolArray = np.zeros(0, np.bool_)
_NO_KEYS: Int64Array = np.zeros(0, dtype=np.int64)


class Catalog:
    """Items (an item's row is its number; a table's rows are in SID order), with availability that can change.

    Not thread-safe: `set_available`, `join` and `resolve` belong to the thread that decodes, between its batches. What
    never changes (`own_row`, `own_rows`, `sids`, `trie`, `columns`, `codes`) may be read from any thread, and `row`,
    which knows the delta's items too. What else changes makes another catalog, which shares with this one what it can
    (`xgr_stream.catalog.merge`).
    """

    delta: Delta | None = None
    """Items that are searched together with these: new ones, and some of these with other places. Its rows are numbered
    behind these; `forest`, `tags`, `filters` and `available` are of both, `trie`, `sids`, `columns`, `item_ids` and
    `num_items` of these alone."""

    def __init__(
        self,
        columns: ItemColumns,
        *,
        trie: Trie | None = None,
        origin: Catalog | None = None,
        twin: Catalog | None = None,
    ) -> None:
        """`origin`: the catalog of a table that this one came from, by updates, and `trie` its own; None: `columns` are
        a table's own, in SID order. `twin`: another catalog of the same table (`anew`)."""
        self.codes = columns.codes
        self.levels = len(columns.codes)
        self.sids = columns.sids
        """[rows, levels]; a row of -1 has no place in the catalog."""
        rows = self.num_rows = len(columns.sids)
        if trie is None:
            in_order = np.arange(rows, dtype=np.int32)
            trie = Trie.from_sids(columns.sids, columns.codes, in_order) if twin is None else twin.trie
        self.trie: Trie = trie
        self.forest: Trie | Forest = trie
        self.tags: TagIndex | JoinedTags = columns.tags
        self.num_items = len(trie.items)
        self._origin = origin
        self.names: ItemNames
        """Shared by all catalogs of a table."""
        if twin is not None:
            self.names = twin.names.of_table()
        else:
            self.names = origin.names if origin is not None else ItemNames(columns.item_ids)
        self.item_ids: PackedStrings | ItemNames = columns.item_ids
        known = origin or twin
        self.base_version: str = storage.content_hash(columns) if known is None else known.base_version
        """Hash of all but the availability; of one that updates were merged into, its origin's. Catalogs of tables that
        have one base version give every item the same tokens."""
        self.revision = 0
        """Grows with every change of availability of this object."""
        self.columns = columns
        self._live = LiveItems(columns.available, DELTA_ITEMS)
        self.filters = FilterResolver(self.trie, columns.tags, self._live)
        self._away = storage.rows_hash(np.flatnonzero(~columns.available))
        self._named: str | None = None
        self._flipped: deque[Int32Array] = deque()
        self._num_flipped = 0
        self._ranking: Ranking | None = None
        if columns.popularity is not None:
            of_table = None if origin is None else origin._ranking
            self._ranking = of_table.of_merged(trie.items, rows) if of_table else Ranking.of_table(columns.popularity)

    def anew(self) -> Catalog:
        """Another catalog of the table that this one was made of, as it was before any change. It shares what never
        changes, ids above all: a dictionary of a million holds up all threads for half a second. On any thread."""
        table = self._origin or self
        return Catalog(table.columns, twin=table)

    @classmethod
    def from_table(cls, source: Columns, *, codes: int | np.integer[Any] | Sequence[int] | None = None) -> Catalog:
        """Build from a Parquet, CSV or JSON Lines file, an Arrow table or a mapping of columns.

        Columns: `item_id`; `sid` (lists of codes) or `sid_0`, `sid_1`, ...; optionally `tags` (lists of strings, or
        one string with `|` between them), `popularity` (numbers) and `available` (booleans). Others are ignored.
        `codes` per level (one for all, or one each), for a model that has more of them than the table uses.
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
        levels, seed = _integer("levels", levels, least=1), _integer("seed", seed, least=0)
        per_level = codes_by_level(codes, levels)
        if len(per_level) != levels:
            raise CatalogError(f"codes is {per_level}, expected one number or {levels}, as many as levels")
        sids = residual_kmeans(embeddings, per_level, seed=seed, unique=unique, items=len(item_ids))
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
        return self._named or f"{self.base_version}.{self._away:x}"

    @property
    def origin(self) -> Catalog:
        """The catalog of a table that updates made this one of; itself, of a table's own."""
        return self._origin or self

    @property
    def available(self) -> BoolArray:
        """[rows, the delta's too]; do not write to it."""
        return self._live.items

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """What is large of it; some of it may be another catalog's too."""
        trie, tags = self.trie, self.columns.tags
        arrays: list[npt.NDArray[Any]] = [self.sids, self.columns.available, self.available, tags.rows, *tags.by_row]
        arrays += [trie.items, trie.item_starts, trie.leaves, *trie.node_codes, *trie.child_starts, *trie.parents]
        if self.columns.popularity is not None and self._ranking is not None:
            arrays += [self.columns.popularity, *self._ranking.arrays]
        return arrays

    def live_counts(self) -> tuple[Int32Array, ...]:
        """[d]: live items below each node of depth d, [nodes of depth d], counted anew."""
        return self.counts_below(self._live.items)

    def counts_below(self, items: BoolArray) -> tuple[Int32Array, ...]:
        """[d]: of these items [rows], those below each node of depth d, [nodes of depth d]."""
        counts = counts_below(self.trie, items[: self.num_rows])
        if self.delta is None:
            return counts
        behind = counts_below(self.delta.trie, items[self.num_rows :])
        return tuple(map(np.concatenate, zip(counts, behind, strict=True)))

    def row(self, item_id: str) -> int | None:
        delta = self.delta
        row = None if delta is None else delta.row_of.get(item_id)
        return self.own_row(item_id) if row is None else row

    def own_row(self, item_id: str) -> int | None:
        """The same, the delta aside."""
        row = self.names.row(item_id)
        return row if row is not None and row < self.num_rows and self.sids[row, 0] >= 0 else None

    def rows(self, item_ids: Collection[str]) -> Int32Array:
        """The row of each item, -1 where the catalog does not know it, [items asked for]."""
        item_ids = item_ids if isinstance(item_ids, Sequence) else list(item_ids)
        rows = self.own_rows(item_ids)
        if self.delta is not None:
            self.delta.replace(rows, item_ids)
        return rows

    def own_rows(self, item_ids: Sequence[str]) -> Int32Array:
        """The same, the delta aside."""
        rows = self.names.rows(item_ids)
        if self._origin is not None or len(self.names) > self.num_rows:
            rows[rows >= self.num_rows] = -1
            rows[self.sids[rows, 0] < 0] = -1
        return rows

    def sid(self, item_id: str) -> tuple[int, ...] | None:
        row = self.row(item_id)
        return None if row is None else tuple(self.sids_of(np.array([row]))[0].tolist())

    def sids_of(self, rows: npt.NDArray[np.integer]) -> Int32Array:
        """[rows, levels]; anything for row -1."""
        sids = self.sids.take(rows, axis=0, mode="clip")
        if self.delta is not None:
            behind = np.flatnonzero(rows >= self.num_rows)
            sids[behind] = self.delta.sids[rows[behind] - self.num_rows]
        return sids

    def ids_of(self, rows: Int32Array) -> list[str]:
        """The ids of these rows."""
        if self.delta is None:
            return self.item_ids.take(rows)
        behind = rows >= self.num_rows
        ids = self.item_ids.take(np.where(behind, 0, rows))
        for place in np.flatnonzero(behind).tolist():
            ids[place] = self.delta.item_ids[rows.item(place) - self.num_rows]
        return ids

    def join(self, places: Mapping[str, Place]) -> None:
        """Have these items, whose own rows, if they have any, are flipped off, in the delta, in place of those before;
        none: there is no delta. Mutates."""
        forest: Trie | Forest = self.trie
        tags: TagIndex | JoinedTags = self.columns.tags
        delta = None
        if places:
            in_order = dict(sorted(places.items(), key=lambda item: (item[1].sid, item[0])))
            item_ids, popularity = list(in_order), self.columns.popularity
            own = self.own_rows(item_ids)
            if popularity is not None:
                popularity = np.where(own < 0, 0.0, popularity.take(own, mode="clip"))
            columns = ItemColumns.from_places(in_order, self.codes, popularity)
            delta = Delta(item_ids, columns, own, self.num_rows)
            forest, tags = Forest.of(self.trie, delta.trie), JoinedTags(self.columns.tags, delta.tags)
        filters = FilterResolver(forest, tags, self._live)
        self._live.join(_NO_ITEMS if delta is None else delta.available)
        self.forest, self.tags, self.filters, self.delta = forest, tags, filters, delta

    @property
    def delta_retokenises(self) -> bool:
        """Whether the delta gives an item another semantic ID than it has without it, or its first."""
        if self.delta is None:
            return False
        own = self.delta.own_rows
        return bool((own < 0).any() or (self.sids.take(own, axis=0) != self.delta.sids).any())

    def set_available(self, item_ids: Iterable[str], available: bool) -> None:
        """Let items come or go, at once. Mutates. Not for one that follows a topic of updates, whose version would no
        longer tell its content."""
        if isinstance(item_ids, str | bytes) or not isinstance(item_ids, Iterable):
            raise CatalogError(f"item_ids must be a collection of item ids, not {item_ids!r}")
        item_ids = list(item_ids)
        for item in item_ids:
            if not isinstance(item, str):
                raise CatalogError(f"item_ids must hold item ids, which are strings, not {item!r}")
        if type(available) is not bool:
            raise CatalogError(f"available must be true or false, not {available!r}")
        if self.follows_updates:
            raise CatalogError(f"the catalog must be no updated one, and it is {self._named}: send it an update")
        unique = sorted(set(item_ids))
        rows = self.rows(unique)
        if (rows < 0).any():
            raise CatalogError(f"item_id {unique[int(np.argmin(rows))]!r} is not in the catalog, expected a known item")
        self.flip(rows, available)

    def flip(self, rows: Int32Array, available: bool) -> None:
        """`set_available` for these rows, which have a place, do not repeat and are none of the delta's."""
        moving = self._live.items.take(rows) != available
        if not moving.all():
            rows = rows[moving]
        if len(rows) == 0:
            return
        self._live.flip(rows, available)
        self._away ^= storage.rows_hash(rows)
        self.revision += 1
        self._flipped.append(rows)
        self._num_flipped += len(rows)
        while self._num_flipped > FLIPS_REMEMBERED and len(self._flipped) > 1:
            self._num_flipped -= len(self._flipped.popleft())

    def rows_flipped_since(self, revision: int) -> Int32Array | None:
        """Items that came or went after the catalog had this revision, with repetitions; None: too many to tell."""
        changes = self.revision - revision
        if changes > len(self._flipped):
            return None
        if changes == 1:
            return self._flipped[-1]
        return np.concatenate([self._flipped[-i] for i in range(changes, 0, -1)] or [_NO_ROWS])

    @property
    def follows_updates(self) -> bool:
        return self._named is not None

    def name(self, version: str) -> None:
        """What `version` is from now on: of a catalog that follows updates."""
        self._named = version

    def resolve(self, item_filter: ItemFilter) -> ResolvedFilter:
        """What the filter means here."""
        return self.resolve_all((item_filter,))[0]

    def resolve_all(self, item_filters: Sequence[ItemFilter]) -> list[ResolvedFilter]:
        """The same of each: in half the time, where all of them exclude items, since these are looked up together."""
        excluded: list[str] = []
        for item_filter in item_filters:
            excluded += item_filter.exclude
        if not excluded:  # many are equal, most often
            found = {each: self.filters.resolve(each, _NO_KEYS) for each in dict.fromkeys(item_filters)}
            return [found[item_filter] for item_filter in item_filters]
        keys = self.filters.keys(self.rows(excluded))
        resolved, end = [], 0
        for item_filter in item_filters:
            begin, end = end, end + len(item_filter.exclude)
            resolved.append(self.filters.resolve(item_filter, keys[begin:end]))
        return resolved

    def items_at(self, leaves: Int32Array) -> tuple[Int32Array, Int32Array]:
        """The items at these leaves, whether they may be returned or not: (position in `leaves`, item row), both
        [items found], in the order of `leaves`, then of item ids. A leaf of -1 (a beam that found nothing) has none."""
        starts, items = self.forest.item_starts, self.forest.items
        first, counts = starts.take(leaves), starts.take(leaves + 1)
        counts -= first  # never 1 for a leaf of -1
        if (counts == 1).all():  # most often
            return np.arange(len(leaves), dtype=np.int32), items.take(first)
        counts[leaves < 0] = 0
        positions = np.repeat(np.arange(len(leaves), dtype=np.int32), counts)
        within = np.arange(len(positions)) - np.repeat(counts.cumsum() - counts, counts)
        return positions, items.take(first[positions] + within)

    def popular(self, k: int, resolved: ResolvedFilter) -> Int32Array:
        """The rows of the k most popular items that may be returned, [at most k]; none if the table named no
        popularity. Equal ones in row order; those that updates brought come last, in SID order, the delta's new ones
        behind; others of the delta where they would be without it."""
        if self._ranking is None:
            return _NO_ROWS
        found = self._ranking.first(k, resolved)
        if self.delta is not None:
            behind = self.forest.in_order[-1]
            behind = behind[resolved.allows(behind)]
            own = np.concatenate((found, self.delta.own_rows[behind - self.num_rows]))
            found = np.concatenate((found, behind))[np.argsort(self._ranking.ranks(own), kind="stable")[:k]]
        return found

    def to_table(self) -> pa.Table:
        """The items that have a place, as `from_table` takes them, current availability included."""
        rows, delta = np.sort(self.trie.items), self.delta
        own = storage.as_table(self.columns, self._live.items[: self.num_rows])
        if delta is None:
            return own.take(rows)
        own = own.take(rows[~np.isin(rows, delta.own_rows)])
        return pa.concat_tables((own, storage.as_table(delta.columns, delta.available)), promote_options="permissive")

    def save(self, path: str | Path) -> None:
        """Write one Parquet file, current availability included; `load` checks it against its own hash. Of a catalog
        that follows updates this makes a new one, with a version of its own."""
        if self.follows_updates:
            # An update may have a code that the table has not: the model's are more.
            used = self.codes if self.delta is None else (self.delta.sids.max(axis=0) + 1).tolist()
            Catalog.from_table(self.to_table(), codes=tuple(map(max, self.codes, used))).save(path)
        else:
            storage.save(self.columns, self._live.items, Path(path), self.version)

    def check_integrity(self) -> None:
        """Raise `CatalogError` if the version or the number of live items is not what counting gives."""
        if self._live.count != np.count_nonzero(self._live.items):
            raise CatalogError(
                f"{self._live.count} items are said to be live, not {np.count_nonzero(self._live.items)}"
            )
        if self._away != storage.rows_hash(np.flatnonzero(~self._live.items[: self.num_rows])):
            raise CatalogError("the version does not match the availability")
        own = _NO_ROWS if self.delta is None else self.delta.own_rows
        if self._live.items[own[own >= 0]].any():
            raise CatalogError("an item of the delta is to be had in its own place, too")


def _integer(name: str, value: object, *, least: int) -> int:
    """An argument, which may be one of NumPy's."""
    value = int(value) if isinstance(value, np.integer) else value
    if type(value) is not int or value < least:
        raise CatalogError(f"{name} is {value!r}, expected an integer of at least {least}")
    return value
