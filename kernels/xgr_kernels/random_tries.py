"""Tries of random items with masks, for the benchmarks of what works on them."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.node_masks import NodeMasks


def random_trie(items: int, codes: int, *, levels: int, masks: int, share: float, device: str) -> NodeMasks:
    """Items of uniformly random semantic IDs, all live; the first mask allows all, the others a random `share` each."""
    prefixes = torch.randint(0, codes**levels, (items,), device=device).sort().values
    counts = prefixes.unique_consecutive(return_counts=True)[1]
    item_starts = _starts(counts)
    child_starts: list[Tensor] = []
    nodes = prefixes.unique_consecutive()
    for _ in range(levels):
        nodes, counts = (nodes // codes).unique_consecutive(return_counts=True)
        child_starts.insert(0, _starts(counts))
    allowed = torch.rand(masks, items, device=device) < share
    allowed[0] = True
    tables = []
    bits = allowed
    for starts in (item_starts, *child_starts[:0:-1]):
        before = torch.nn.functional.pad(bits.cumsum(1, dtype=torch.int32), (1, 0))
        bits = before[:, starts[1:].long()] > before[:, starts[:-1].long()]
        tables.insert(0, bits)
    return NodeMasks(
        live=torch.ones(items, dtype=torch.bool, device=device),
        allowed=allowed,
        items=torch.arange(items, dtype=torch.int32, device=device),
        item_starts=item_starts,
        child_starts=tuple(child_starts),
        masks=tuple(tables),
    )


def paths(tree: NodeMasks, rows: Tensor) -> Tensor:
    """The nodes above each of these items, which are in SID order, per level. [levels, n] int32"""
    nodes = [torch.searchsorted(tree.item_starts, rows, right=True).int() - 1]
    for starts in tree.child_starts[:0:-1]:
        nodes.insert(0, torch.searchsorted(starts, nodes[0], right=True).int() - 1)
    return torch.stack(nodes)


def _starts(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
