"""The items that are searched beside a catalog's own until they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from xgr_stream.catalog.columns import ItemColumns
from xgr_stream.catalog.trie import Int32Array, Trie

RESIDUES = 1 << 15
"""To look for each of 8,000 rows among 256 takes 0.4 ms; for the 60 whose residue one of them has, 0.03 in all."""
_NO_ROW = np.iinfo(np.int32).max


class Delta:
    """New items, and some of the catalog's own with other places. Their rows, which are numbered behind the catalog's,
    count for more than those that these have there. Never changes."""

    def __init__(self, item_ids: Sequence[str], columns: ItemColumns, own_rows: Int32Array, first: int) -> None:
        """`item_ids`: those of `columns`, in SID order. `own_rows`: the catalog's own row of each, -1 of a new one.
        `first`: the row of the first, which in `trie` is 0."""
        self.item_ids, self.columns = item_ids, columns
        self.sids, self.tags, self.available = columns.sids, columns.tags, columns.available
        self.num_items = len(columns.sids)
        self.trie = Trie.from_sids(columns.sids, columns.codes, np.arange(self.num_items, dtype=np.int32))
        self.own_rows = own_rows
        self.row_of = dict(zip(item_ids, count(first)))
        order = np.argsort(own_rows, kind="stable")
        self._own = np.append(own_rows.take(order), np.int32(_NO_ROW))
        self._instead = np.append(order + first, -1).astype(np.int32)
        self._residues = np.zeros(RESIDUES, np.bool_)
        self._residues[own_rows & (RESIDUES - 1)] = True

    def replace(self, rows: Int32Array, item_ids: Sequence[str]) -> None:
        """Have one's own rows among these, which are the catalog's of these items. Mutates `rows`."""
        perhaps = np.flatnonzero(self._residues.take(rows & (RESIDUES - 1), mode="clip"))
        own = rows.take(perhaps)
        at = self._own.searchsorted(own)
        found = np.where(self._own.take(at) == own, self._instead.take(at), own)
        for place in np.flatnonzero(own < 0).tolist():
            found[place] = self.row_of.get(item_ids[perhaps.item(place)], -1)
        rows[perhaps] = found
