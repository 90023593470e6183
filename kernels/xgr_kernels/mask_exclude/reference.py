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
    tree: NodeMasks, excluded: Tensor, *, starts: Tensor, mask_index: Tensor, emptied: Sequence[Tensor]
) -> None:
    request = owners(starts)
    used = len(request)
    mask = mask_index.long()[request]
    no_nodes = torch.arange(used, device=starts.device) - starts[1:].long()[request] + NO_NODE
    rows = excluded[0, :used].long()
    kept = (tree.live[rows] & tree.allowed[mask, rows]).nonzero()[:, 0]  # one for each node that may be emptied
    for level in reversed(range(tree.levels)):
        node, own = excluded[1 + level].long()[kept], request[kept]
        first = torch.ones(len(kept), dtype=torch.bool, device=node.device)
        first[1:] = (node[1:] != node[:-1]) | (own[1:] != own[:-1])
        firsts = first.nonzero()[:, 0]
        gone = torch.diff(firsts, append=firsts.new_tensor([len(kept)]))
        kept, node, own = kept[firsts], node[firsts], own[firsts]
        empty = count_in_ranges(tree, level, mask[kept], node, gone) == gone
        kept, node, own = kept[empty], node[empty], own[empty]
        before = torch.bincount(own, minlength=len(mask_index)).cumsum(0)
        place = torch.arange(len(own), device=own.device) - torch.cat((before.new_zeros(1), before))[own] + starts[own]
        emptied[level][:used] = no_nodes
        emptied[level][place] = node.int()
