"""Two tries in the same arrays: where the two nodes of one prefix are told."""

from __future__ import annotations

import torch
from torch import Tensor


def other_nodes(others: Tensor, nodes: Tensor) -> Tensor:
    """Of each of `nodes` [n] int32 the one of the same prefix in the other trie, -1 if there is none. [n] int32

    others: [2, pairs + 1] int32: nodes that have one, ascending, and these; behind them numbers that are no node's, one
    at least.
    """
    place = torch.searchsorted(others[0], nodes).clamp_(max=others.shape[1] - 1)
    return torch.where(others[0].index_select(0, place) == nodes, others[1].index_select(0, place), -1)
