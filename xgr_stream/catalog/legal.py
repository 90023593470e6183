"""Which items are to be had, and how many of a set of items stand below each trie node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.trie import Int32Array, Trie

BoolArray = npt.NDArray[np.bool_]


class LiveItems:
    """The items that are to be had: a catalog's, and a delta's behind them."""

    def __init__(self, items: BoolArray, room: int) -> None:
        """`items`: the catalog's, [rows]; it is copied. `room`: rows that a delta has at most."""
        self._rows = len(items)
        self._buffer = np.empty(len(items) + room, np.bool_)
        self._buffer[: len(items)] = items
        self.items = self._buffer[: len(items)]
        """[rows]: whether the item is to be had."""
        self.count = int(np.count_nonzero(items))

    def join(self, delta: BoolArray) -> None:
        """Let these be the delta's, [rows of it]. Mutates."""
        self.count += int(np.count_nonzero(delta)) - int(np.count_nonzero(self.items[self._rows :]))
        self.items = self._buffer[: self._rows + len(delta)]
        self.items[self._rows :] = delta

    def flip(self, rows: Int32Array, present: bool) -> None:
        """Mutates. `rows`, which must not repeat, are not so yet."""
        self.items[rows] = present
        self.count += len(rows) if present else -len(rows)


def counts_below(trie: Trie, items: BoolArray) -> tuple[Int32Array, ...]:
    """[d]: of these items [rows], those below each node of depth d, [nodes of depth d]. Looks at all of them: what
    serves looks at what changes (`xgr_kernels.mask_flip`), and is checked by this."""
    before = np.zeros(len(trie.items) + 1, np.int32)
    np.cumsum(items[trie.items], out=before[1:])
    return tuple(np.diff(before[trie.item_bounds(depth)]) for depth in range(trie.levels + 1))
