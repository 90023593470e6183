"""A catalog and changed items → another catalog, made on a thread of its own while the first one serves.

Nearly all of it is NumPy on whole arrays, in calls that let go of the GIL (`np.repeat`, `np.cumsum` and `np.bincount`
do not). What is Python takes small steps: a single call that makes 100,000 strings into an array would hold up the
device thread for as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.beside import in_steps, none_of, pieces, run_sum
from xgr_stream.catalog.catalog import Catalog
from xgr_stream.catalog.columns import ItemColumns
from xgr_stream.catalog.tags import BoolArray, TagIndex
from xgr_stream.catalog.trie import Int32Array


class Place(NamedTuple):
    """Where an item stands in a catalog."""

    sid: tuple[int, ...]
    tags: tuple[str, ...]
    """Sorted."""
    available: bool


Changes = Mapping[str, Place | None]
"""What each changed item is to be; None: it has no place any more."""


def merge(catalog: Catalog, available: BoolArray, changes: Changes) -> Catalog:
    """The catalog with these changes, and `available` [rows] for the other items. Reads `catalog`'s unchanging parts
    alone and adds to its names."""
    names = catalog.names
    changed = np.concatenate([names.add(part) for part in in_steps(changes)])
    num_rows = max(len(names), len(catalog.sids))
    placed = [place for place in changes.values() if place is not None]
    rows = changed[np.fromiter((place is not None for place in changes.values()), np.bool_, len(changes))]

    sids = np.full((num_rows, catalog.levels), -1, np.int32)
    sids[: len(catalog.sids)] = catalog.sids
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

    touched = none_of(num_rows)
    touched[changed] = True
    stay = catalog.trie.items[~touched.take(catalog.trie.items)]
    columns = ItemColumns(
        item_ids=names,
        sids=sids,
        codes=tuple(codes.tolist()),
        tags=_tags(catalog.columns.tags, touched, placed, rows, num_rows),
        popularity=_popularity(catalog.columns, num_rows),
        available=now_available,
    )
    return Catalog(columns, order=_order(columns, stay, rows), origin=catalog.origin)


def _order(columns: ItemColumns, stay: Int32Array, come: Int32Array) -> Int32Array:
    """All rows in SID order, then in order of their item ids. `stay` are so already; `come`, few, in any order."""
    keys = _keys(columns, np.concatenate((stay, come)))
    old, new = keys[: len(stay)], keys[len(stay) :]
    ascending = np.argsort(new, kind="stable")
    new = new[ascending]
    places = old.searchsorted(new, side="right")
    order = np.insert(stay, places, come[ascending])
    keys = np.insert(old, places, new)
    # Only where an item that comes shares its SID with another is there something left to put in order.
    new = new[np.diff(new, prepend=-1) != 0]
    first, last = keys.searchsorted(new), keys.searchsorted(new, side="right")
    shared = last - first > 1
    for begin, end in zip(first[shared].tolist(), last[shared].tolist(), strict=True):
        order[begin:end] = sorted(order[begin:end].tolist(), key=columns.item_ids.__getitem__)
    return order


def _keys(columns: ItemColumns, rows: Int32Array) -> npt.NDArray[np.int64]:
    """Of each row a number that stands for its SID, in SID order."""
    keys = np.zeros(len(rows), np.int64)
    combinations = 1
    for level, codes in enumerate(columns.codes):
        combinations *= codes
        if combinations > 1 << 62:  # number the distinct prefixes so far, which are at most as many as the rows
            ascending = np.argsort(keys, kind="stable")
            begins = np.diff(keys[ascending], prepend=-1).astype(np.bool_).astype(np.int64)
            run_sum(begins)
            keys[ascending] = begins
            combinations = (len(rows) + 1) * codes
        # In pieces: to free an array of 20 million takes some ms, which no other thread has.
        for place in pieces(len(rows)):
            piece = keys[place]
            piece *= codes
            piece += columns.sids[rows[place], level]
    return keys


def _tags(old: TagIndex, touched: BoolArray, placed: Sequence[Place], rows: Int32Array, num_rows: int) -> TagIndex:
    names = dict(old.index)
    tags, of = [], []
    for part in in_steps(zip(rows, placed, strict=True)):
        for row, place in part:
            for tag in place.tags:
                tags.append(names.setdefault(tag, len(names)))
                of.append(row)
    stay = ~touched[old.rows]
    new_tags = np.concatenate([old.tag_of_pair[stay], *(np.array(part, np.int32) for part in in_steps(tags))])
    new_rows = np.concatenate([old.rows[stay], *(np.array(part, np.int32) for part in in_steps(of))])
    made = TagIndex.from_pairs(names, new_tags.astype(np.int64), new_rows.astype(np.int32), num_rows)
    _ = made.by_row  # now, and not when the device thread first asks for an item's tags
    return made


def _popularity(columns: ItemColumns, num_rows: int) -> npt.NDArray[np.float64] | None:
    """Of an item that an update brought: 0."""
    if columns.popularity is None:
        return None
    popularity = np.zeros(num_rows)
    popularity[: len(columns.popularity)] = columns.popularity
    return popularity
