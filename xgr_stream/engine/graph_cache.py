"""Captured CUDA graphs of an engine, as many as its budget of the device's memory has room for."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
"""Of one graph: those of 28 layers take 1 MiB each. What seems to take more was taken by another process meanwhile."""


class _Kept(NamedTuple):
    graph: torch.cuda.CUDAGraph
    num_bytes: int


class GraphCache:
    """Graphs of all kinds of steps, each by a key of its kind's own. When they take more than the budget together, the
    least recently used are dropped, but never the one that came last: it is to be replayed.

    What counts is what a graph takes by being kept, which torch's allocator does not see. The memory that a kind's
    graphs compute in is one pool, as large as the largest of them needs: to drop others would not make it smaller.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._kept: OrderedDict[tuple[object, Hashable], _Kept] = OrderedDict()
        """The least recently used first."""
        self._spare_bytes = 0
        """That dropped ones took and the driver still has."""
        self.bytes_used = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, kind: object, key: Hashable) -> torch.cuda.CUDAGraph | None:
        """The graph, as the most recently used; None: it is not here."""
        kept = self._kept.get((kind, key))
        if kept is None:
            return None
        self._kept.move_to_end((kind, key))
        return kept.graph

    def keep(self, kind: object, key: Hashable, capture: Callable[[], torch.cuda.CUDAGraph]) -> torch.cuda.CUDAGraph:
        """Have the graph that `capture` makes and has replayed, until when it has not taken all of its memory; drop
        others for it if need be."""
        before = _bytes_in_use()
        graph = capture()
        grown = max(0, _bytes_in_use() - before)
        if grown > MOST_BYTES:  # would be of this graph for ever, and of those that get its memory behind it
            grown = 0
        # A graph gets of what the driver has spare before more of the device's: all of it, or, if that was enough, what
        # is not seen and taken to be as much as the others have.
        reused = self._spare_bytes
        if not grown:
            reused = min(reused, (self.bytes_used + self._spare_bytes) // (len(self._kept) + 1))
        self._spare_bytes -= reused
        self._kept[kind, key] = _Kept(graph, grown + reused)
        self.bytes_used += grown + reused
        logger.info("%d graphs take %.1f MiB", len(self), self.bytes_used / 2**20)
        self._drop(self._too_many())
        return graph

    def any_of(self, kind: object) -> torch.cuda.CUDAGraph | None:
        """A graph of this kind, whose memory pool another one may share; None: there is none, and no pool any more."""
        return next((kept.graph for (own, _), kept in self._kept.items() if own is kind), None)

    def clear(self, kind: object) -> None:
        """Drop all graphs of this kind."""
        self._drop([name for name in self._kept if name[0] is kind])

    def _too_many(self) -> list[tuple[object, Hashable]]:
        names, excess = [], self.bytes_used - self._budget_bytes
        for name, kept in list(self._kept.items())[:-1]:
            if excess <= 0:
                break
            names.append(name)
            excess -= kept.num_bytes
        return names

    def _drop(self, names: list[tuple[object, Hashable]]) -> None:
        if not names:
            return
        torch.cuda.synchronize()  # they may still be running
        before = _bytes_in_use()
        dropped = sum([self._kept.pop(name).num_bytes for name in names])
        self.bytes_used -= dropped
        self._spare_bytes = max(0, self._spare_bytes + dropped - (before - _bytes_in_use()))
        logger.info("dropped %d of them: their budget is %.1f MiB", len(names), self._budget_bytes / 2**20)


def _bytes_in_use() -> int:
    """Of the device's memory, but for what torch's allocator has."""
    while True:
        reserved = torch.cuda.memory_reserved()
        free, total = torch.cuda.mem_get_info()
        if torch.cuda.memory_reserved() == reserved:  # else another thread, that of a merge, had memory in between
            return total - free - reserved
