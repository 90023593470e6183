"""Exact filters: which items a request may use.

Of the millions of items only the few that a search returns are looked at here, by their tags. Which nodes of the trie
are legal is worked out where the search reads it, on the device (`xgr_stream.engine.legality`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.forest import Forest, JoinedTags
from xgr_stream.catalog.legal import BoolArray, LiveItems
from xgr_stream.catalog.tags import TagIndex, Together
from xgr_stream.catalog.trie import Int32Array, Trie
from xgr_stream.types import NO_FILTER, ItemFilter, Tags

LOOKED_AT = 4_096
"""Items that are looked at, at most, for one that a filter leaves: 0.3 ms. Where they hold none, a search tells."""
AT_FIRST = 32

Int64Array = npt.NDArray[np.int64]
TagsKey = tuple[tuple[Together, ...] | None, tuple[Together, ...]]
"""(allow, deny), the entries of each sorted; allow None: everything."""


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedFilter:
    """What an `ItemFilter` means in one catalog, as it is whenever it is asked."""

    tags_key: TagsKey | None
    """None: no tag is asked for."""
    excluded: Int64Array
    """The excluded items as `leaf << 32 | row`, sorted, so in SID order, and each once. Live or not, allowed or not."""
    _trie: Trie | Forest
    _tags: TagIndex | JoinedTags
    _live: LiveItems

    @property
    def excluded_rows(self) -> Int32Array:
        return (self.excluded & 0xFFFFFFFF).astype(np.int32)

    def keys(self, rows: Int32Array) -> Int64Array:
        """`leaf << 32 | row` of each row, which has a place, as `excluded` has them."""
        return _keys(self._trie, rows)

    def allows(self, rows: Int32Array) -> BoolArray:
        """Whether each item row, which has a place, may be returned."""
        allowed = self.live(rows)
        if self.tags_key is not None:
            allowed &= self.tagged(rows)
        if len(self.excluded):
            allowed &= self.not_excluded(self.keys(rows))
        return allowed

    def live(self, rows: Int32Array) -> BoolArray:
        """Whether each item is to be had, whatever the filter: the same of all filters of a catalog."""
        alive: BoolArray = self._live.items[rows]
        return alive

    def tagged(self, rows: Int32Array) -> BoolArray:
        """Whether each item passes the tags: the same of all filters of a catalog with the same `tags_key`."""
        return self._tags.match(rows, *(self.tags_key or (None, ())))

    def not_excluded(self, keys: Int64Array) -> BoolArray:
        """Whether each item is none of the excluded, of which there must be some. `keys`: theirs."""
        others: BoolArray = self.excluded.take(self.excluded.searchsorted(keys), mode="clip") != keys
        return others

    def leaves_any(self) -> bool | None:
        """Whether there is an item that it leaves; None: not among the first that were looked at."""
        allow, deny = self.tags_key or (None, ())
        if allow is None:
            denied = sum(len(rows) for entry in deny for rows in self._tags.candidates(entry))
            if len(self.excluded) + denied < self._live.count:  # nearly always: then there is nothing to look at
                return True
            if not deny:
                return bool(np.count_nonzero(self._live.items[self.excluded_rows]) < self._live.count)
        most, left = AT_FIRST, LOOKED_AT
        for rows in self._candidates(allow):
            first = 0
            while first < len(rows):
                if not left:
                    return None
                some = rows[first : first + min(most, left)]
                if self.allows(some).any():
                    return True
                first += len(some)
                left -= len(some)
                most = LOOKED_AT
        return False

    def few(self, most: int) -> Int32Array | None:
        """All that it leaves, in row order; None where its tags don't say at once that they are among `most` items."""
        if self.tags_key is None or self.tags_key[0] is None:
            return None
        parts = list(self._candidates(self.tags_key[0]))
        if sum(map(len, parts)) > most:
            return None
        rows = np.unique(np.concatenate([np.zeros(0, np.int32), *parts]))
        left: Int32Array = rows[self.allows(rows)]
        return left

    def _candidates(self, allow: tuple[Together, ...] | None) -> Iterator[Int32Array]:
        """Rows of items that hold all that it leaves."""
        if allow is None:
            yield from self._trie.in_order
        else:
            for entry in allow:
                yield from self._tags.candidates(entry)


class FilterResolver:
    """Resolves filters."""

    def __init__(self, trie: Trie | Forest, tags: TagIndex | JoinedTags, live: LiveItems) -> None:
        self._trie = trie
        self._tags = tags
        self._live = live
        self._unfiltered = self._resolved(None, np.zeros(0, np.int64))

    def keys(self, rows: Int32Array) -> Int64Array:
        """What `resolve` takes, of these rows; -1 of row -1. [rows]"""
        keys = _keys(self._trie, rows)
        if len(rows) and int(rows.min()) < 0:
            keys[rows < 0] = -1
        return keys

    def resolve(self, item_filter: ItemFilter, excluded: Int64Array) -> ResolvedFilter:
        """`excluded`: the `keys` of the rows of `item_filter.exclude`, -1 for what the catalog does not know. Mutates
        them: they are the filter's from here on."""
        if item_filter is NO_FILTER or item_filter == NO_FILTER:  # nearly always the first, 0.3 µs sooner
            return self._unfiltered
        excluded.sort()
        if len(excluded) and excluded[0] < 0:
            excluded = excluded[excluded.searchsorted(0) :]
        return self._resolved(self._tags_key(item_filter), excluded)

    def without(self, resolved: ResolvedFilter, rows: Int32Array) -> ResolvedFilter:
        """The same with these rows, in any order, excluded too."""
        keys = np.concatenate((resolved.excluded, _keys(self._trie, rows)))
        keys.sort()
        return self._resolved(resolved.tags_key, keys)

    def key_of(self, allow: Iterable[Together] | None, deny: Iterable[Together]) -> TagsKey | None:
        """In one order, without the entries that no item can match; None if that leaves no condition."""
        key = None if allow is None else self._known(allow), self._known(deny)
        return None if key == (None, ()) else key

    def _resolved(self, key: TagsKey | None, excluded: Int64Array) -> ResolvedFilter:
        """`excluded`: sorted, with repetitions."""
        if len(excluded) > 1:
            distinct = excluded[1:] != excluded[:-1]
            if not distinct.all():
                excluded = np.concatenate((excluded[:1], excluded[1:][distinct]))
        return ResolvedFilter(key, excluded, self._trie, self._tags, self._live)

    def _tags_key(self, item_filter: ItemFilter) -> TagsKey | None:
        if not item_filter.allow and not item_filter.deny:
            return None
        allow = map(_together, item_filter.allow) if item_filter.allow else None
        return self.key_of(allow, map(_together, item_filter.deny))

    def _known(self, entries: Iterable[Together]) -> tuple[Together, ...]:
        return tuple(sorted(self._tags.known(entries)))


def _together(entry: Tags) -> Together:
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _keys(trie: Trie | Forest, rows: npt.NDArray[np.integer]) -> Int64Array:
    """`leaf << 32 | row` of each row."""
    keys: Int64Array = trie.leaves.take(rows).astype(np.int64)
    keys <<= 32
    keys |= rows
    return keys
