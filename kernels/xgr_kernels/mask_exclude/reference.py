"""mask_exclude in plain torch, all requests together, level by level from the leaves up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xgr_kernels.mask_exclude import NO_NODE
from xgr_kernels.node_masks import NodeMasks
from xgr_kernels.ragged import owners
from xgr_kernels.ranges import count_in_ranges


def mask_exclude(
    tree: NodeMasks,
    excluded: Tensor,
    *,
    starts: Tensor,
    mask_index: Tensor,
    num_nodes: Tensor,
    emptied: Sequence[Tensor],
) -> None:
    request = owners(starts)
    used = len(request)
    mask = mask_index.long()[request]
    no_nodes = torch.arange(used, device=starts.device) - starts[1:].long()[request] + NO_NODE
    keys = excluded[:used]
    rows = keys & 0xFFFFFFFF
    legal = tree.live[rows] & tree.allowed[mask, rows]
    node, own = (keys >> 32)[legal], request[legal]  # of each item, or node, that may empty its own
    for level in reversed(range(tree.levels)):
        first = torch.ones(len(node), dtype=torch.bool, device=node.device)
        first[1:] = (node[1:] != node[:-1]) | (own[1:] != own[:-1])
        firsts = first.nonzero()[:, 0]
        gone = torch.diff(firsts, append=firsts.new_tensor([len(node)]))
        node, own = node[firsts], own[firsts]
        empty = count_in_ranges(tree, level, mask_index.long()[own], node, gone) == gone
        node, own = node[empty], own[empty]
        before = torch.bincount(own, minlength=len(mask_index)).cumsum(0)
        place = torch.arange(len(own), device=own.device) - torch.cat((before.new_zeros(1), before))[own] + starts[own]
        emptied[level][:used] = no_nodes
        emptied[level][place] = node.int()
        if level:
            child_starts = tree.child_starts[level][: int(num_nodes[level - 1]) + 1]
            node = torch.searchsorted(child_starts, node.int(), right=True) - 1
