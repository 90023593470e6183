"""The next index of tags, out of the current one and the items that change."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.beside import in_steps
from xgr_stream.catalog.splice import NO_PLACES, Places, bisect_each, spliced
from xgr_stream.catalog.tags import TagIndex
from xgr_stream.catalog.trie import Int32Array


def changed_tags(
    old: TagIndex, changed: Int32Array, rows: Int32Array, tags_of: Iterable[tuple[str, ...]], num_rows: int
) -> TagIndex:
    """What `TagIndex.from_pairs` makes if the item rows `changed`, of which some may be behind those of `old`, have no
    tags but `rows`, of them, those that `tags_of` says of each. `num_rows`: of the next index."""
    row_starts, tags = old.by_row
    known = np.sort(changed[changed < old.num_items])
    row_gone = _ranges(row_starts[known], row_starts[known + 1])
    gone_rows = np.repeat(known, row_starts[known + 1] - row_starts[known])
    gone_tags = tags.take(row_gone)
    tag_gone = bisect_each(old.rows, old.starts[gone_tags], old.starts[gone_tags + 1], gone_rows)
    tag_gone.sort()

    names, come_tags, come_rows = _pairs(old, rows, tags_of)
    rank = _rank(names)
    ranked = rank[: len(old.index)]
    """The rank of each of the old tags among all names."""
    pairs = np.sort(rank.take(come_tags) * num_rows + come_rows)
    come_tags, come_rows = np.divmod(pairs[np.diff(pairs, prepend=-1) != 0], num_rows)
    place = ranked.searchsorted(come_tags)
    there = ranked.searchsorted(come_tags, side="right") > place
    at = bisect_each(old.rows, old.starts[place], old.starts[place + there], come_rows)

    counts = np.bincount(come_tags, minlength=len(names)) - np.bincount(ranked.take(gone_tags), minlength=len(names))
    counts[ranked] += np.diff(old.starts)
    used = counts > 0
    number = np.cumsum(used, dtype=np.int32) - np.int32(1)
    index = old.index
    if len(names) > len(index) or not used.all():
        sorted_names = sorted(names)
        index = {sorted_names[tag]: n for n, tag in enumerate(np.flatnonzero(used).tolist())}
        tags = number.take(ranked).take(tags)

    by_row = np.argsort(come_rows, kind="stable")
    own_rows, own_tags = come_rows.take(by_row), number.take(come_tags.take(by_row))
    behind = np.arange(old.num_items, num_rows)
    return TagIndex(
        index=index,
        starts=np.append(0, np.cumsum(counts[used])),
        rows=spliced(old.rows, tag_gone, at, come_rows),
        by_row=(
            spliced(
                row_starts,
                NO_PLACES,
                np.full(len(behind), old.num_items),
                len(old.rows) - len(row_gone) + own_rows.searchsorted(behind),
                up=np.minimum(own_rows + 1, old.num_items),
                down=gone_rows + 1,
            ),
            spliced(tags, row_gone, row_starts[np.minimum(own_rows, old.num_items)], own_tags),
        ),
    )


def _pairs(
    old: TagIndex, rows: Int32Array, tags_of: Iterable[tuple[str, ...]]
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The names of all tags, the old ones by their number; and of each pair the number of its tag and its row."""
    known, new = old.index, dict[str, int]()
    tags, counts = [NO_PLACES], [NO_PLACES]
    for part in in_steps(tags_of):
        own = [known[tag] if tag in known else new.setdefault(tag, len(known) + len(new)) for tag in chain(*part)]
        tags.append(np.array(own, np.int64))
        counts.append(np.fromiter(map(len, part), np.int64, len(part)))
    return [*known, *new], np.concatenate(tags), np.repeat(rows.astype(np.int64), np.concatenate(counts))


def _rank(names: list[str]) -> npt.NDArray[np.int64]:
    """The place of each of these among them in sorted order."""
    rank = np.empty(len(names), np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return rank


def _ranges(first: Places, last: Places) -> npt.NDArray[np.int64]:
    """All places from each first to its last."""
    counts = last - first
    places: npt.NDArray[np.int64] = np.repeat(last - counts.cumsum(), counts)
    places += np.arange(len(places))
    return places
