"""A catalog and changed items → another catalog, made on a thread of its own while the first one serves.

What stays is copied, and what changes is spliced in (`xgr_stream.catalog.splice`), by calls of NumPy that let go of the
GIL or are short. What is Python takes small steps: a single call that makes 100,000 strings into an array would hold up
the device thread for as long.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.beside import in_steps, none_of
from xgr_stream.catalog.catalog import Catalog
from xgr_stream.catalog.columns import ItemColumns, Place
from xgr_stream.catalog.names import ItemNames
from xgr_stream.catalog.tags import BoolArray
from xgr_stream.catalog.tags_merge import changed_tags
from xgr_stream.catalog.trie import Int32Array, Trie
from xgr_stream.catalog.trie_merge import changed_trie

Changes = Mapping[str, Place | None]
"""What each changed item is to be; None: it has no place any more."""


def merge(catalog: Catalog, available: BoolArray, changes: Changes) -> tuple[Catalog, BoolArray]:
    """The catalog with these changes, and `available` [rows] for the other items; and which of the changes give another
    semantic ID. Reads `catalog`'s unchanging parts alone and adds to its names."""
    names = catalog.names
    changed = np.concatenate([names.add(part) for part in in_steps(changes)])
    old_rows, num_rows = len(catalog.sids), max(len(names), len(catalog.sids))
    placed = [place for place in changes.values() if place is not None]
    rows = changed[np.fromiter((place is not None for place in changes.values()), np.bool_, len(changes))]

    sids = np.empty((num_rows, catalog.levels), np.int32)
    sids[:old_rows] = catalog.sids
    sids[old_rows:] = -1
    before = sids.take(changed, axis=0)
    sids[changed] = -1
    codes = np.array(catalog.codes)
    done = 0
    for part in in_steps(placed):
        own = np.array([place.sid for place in part], np.int32)
        sids[rows[done : done + len(part)]] = own
        np.maximum(codes, own.max(axis=0) + 1, out=codes)
        done += len(part)
    now_available = none_of(num_rows)
    now_available[: len(available)] = available
    now_available[changed] = False
    now_available[rows] = np.fromiter((place.available for place in placed), np.bool_, len(placed))

    columns = ItemColumns(
        item_ids=names,
        sids=sids,
        codes=tuple(codes.tolist()),
        tags=changed_tags(catalog.columns.tags, changed, rows, (place.tags for place in placed), num_rows),
        popularity=_popularity(catalog.columns, num_rows),
        available=now_available,
    )
    now = sids.take(changed, axis=0)
    moved = (before != now).any(axis=1)
    go, come = (changed[moved & (own[:, 0] >= 0)] for own in (before, now))
    trie = changed_trie(catalog.trie, sids, columns.codes, go, come)
    _put_in_order(trie, come, names)
    return Catalog(columns, trie=trie, origin=catalog.origin), moved


def _put_in_order(trie: Trie, come: Int32Array, names: ItemNames) -> None:
    """Order the items of leaves that `come`, of which some are the last there, share with others. Mutates."""
    leaves = np.sort(trie.leaves.take(come))
    leaves = leaves[np.diff(leaves, prepend=-1) != 0]
    first, last = trie.item_starts.take(leaves), trie.item_starts.take(leaves + 1)
    shared = last - first > 1
    for begin, end in zip(first[shared].tolist(), last[shared].tolist(), strict=True):
        trie.items[begin:end] = sorted(trie.items[begin:end].tolist(), key=names.__getitem__)


def _popularity(columns: ItemColumns, num_rows: int) -> npt.NDArray[np.float64] | None:
    """Of an item that an update brought: 0."""
    if columns.popularity is None:
        return None
    popularity = np.zeros(num_rows)
    popularity[: len(columns.popularity)] = columns.popularity
    return popularity
