"""Items by popularity: what is recommended to those of whom nothing is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.filters import ResolvedFilter
from xgr_stream.catalog.trie import Int32Array

FEW = 1 << 16
"""Popular items are chosen from all that a filter leaves, if they are so few and not among as many popular ones."""


class Ranking:
    """A catalog's own items, the most popular first. Never changes."""

    def __init__(self, in_order: Int32Array, num_rows: int) -> None:
        """`in_order`: their rows."""
        self.in_order = in_order
        self._rank = np.empty(num_rows, np.int32)
        self._rank[in_order] = np.arange(len(in_order), dtype=np.int32)

    @classmethod
    def of_table(cls, popularity: npt.NDArray[np.float64]) -> Ranking:
        """Equal ones in row order."""
        return cls(np.argsort(-popularity, kind="stable").astype(np.int32), len(popularity))

    def of_merged(self, items: Int32Array, num_rows: int) -> Ranking:
        """Of a catalog that came from this one's table: those of its `items`, in SID order, that updates brought come
        last."""
        return Ranking(np.concatenate((self.in_order, items[items >= len(self.in_order)])), num_rows)

    def ranks(self, rows: Int32Array) -> Int32Array:
        """Where in the order each of these items is; of row -1: behind all. [rows]"""
        ranks: Int32Array = np.where(rows < 0, np.int32(len(self.in_order)), self._rank.take(rows, mode="clip"))
        return ranks

    @property
    def arrays(self) -> tuple[Int32Array, Int32Array]:
        return self.in_order, self._rank

    def first(self, k: int, resolved: ResolvedFilter) -> Int32Array:
        """The first k that may be returned, [at most k]."""
        ahead = k + len(resolved.excluded)
        while True:  # usually the first items of the order are enough
            if ahead > FEW and (few := resolved.few(FEW)) is not None:
                few = few[few < len(self._rank)]
                return few[np.argsort(self._rank[few])[:k]]
            candidates = self.in_order[:ahead]
            found = candidates[resolved.allows(candidates)][:k]
            if len(found) == k or len(candidates) == len(self.in_order):
                return found
            ahead *= 8
