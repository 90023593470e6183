"""mask_exclude in Triton: one program a request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.legal_below import count_children, count_items
from xgr_kernels.node_masks import NodeMasks

BLOCK, WAYS, WARPS = 512, 4, 16
FEW_ITEMS, CHILDREN = 4, 16
"""Looked at together: leaves have an item or two."""
NO_NODE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def end_of_run(nodes, k, count, node, looking):
    """Where behind k the sorted nodes[:count] are no longer `node`, of each place [BLOCK] that is `looking`: in steps
    that double, most runs being short, then halving."""
    low, step = k + 1, 1
    high = tl.where(looking, count, low)
    open_ = looking
    while tl.max(open_.to(tl.int32), 0) > 0:
        at = low + step - 1
        open_ = open_ & (at < high)
        there = open_ & (tl.load(nodes + at, mask=open_, other=-1) == node)
        high = tl.where(open_ & (there == 0), at, high)
        low = tl.where(there, at + 1, low)
        open_, step = there, step * 2
    while tl.max(high - low, 0) > 0:
        middle = (low + high) // 2
        open_ = low < high
        there = open_ & (tl.load(nodes + middle, mask=open_, other=-1) == node)
        low = tl.where(there, middle + 1, low)
        high = tl.where(open_ & (there == 0), middle, high)
    return low


@triton.jit
def parent_of(child_starts, parents, node, looking, WAYS: tl.constexpr):
    """Among whose children each node [BLOCK] that is `looking` is. Of all places in equally many rounds, each of which
    leaves one of WAYS parts of the parents."""
    parent = node * 0
    while parents > 1:
        part = tl.maximum(parents // WAYS, 1)
        reached = parent * 0
        for way in tl.static_range(1, WAYS):
            inside = looking & (way * part < parents)
            start = tl.load(child_starts + parent + way * part, mask=inside, other=0x7FFFFFFF)
            reached += (start <= node).to(tl.int32)
        parent += reached * part
        parents = tl.maximum(parents - (WAYS - 1) * part, part)
    return parent


@triton.jit(do_not_specialize=["room", "allowed_stride"])  # compiled once for catalogs of all sizes
def mask_exclude_kernel(
    excluded, starts, mask_index, num_nodes, emptied, scratch, live, allowed, items, item_starts, child_starts, masks,
    mask_strides, allowed_stride, room,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr, FEW_ITEMS: tl.constexpr, CHILDREN: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    begin, end = tl.load(starts + request), tl.load(starts + request + 1)
    mask = tl.load(mask_index + request).to(tl.int64)
    own = allowed + mask * allowed_stride
    count = begin * 0
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < end
        key = tl.load(excluded + i, mask=inside, other=0)
        row = key & 0xFFFFFFFF
        legal = (tl.load(live + row, mask=inside, other=0) != 0) & (tl.load(own + row, mask=inside, other=0) != 0)
        legal = legal & inside
        rank = tl.cumsum(legal.to(tl.int32), 0)
        tl.store(scratch + begin + count + rank - 1, (key >> 32).to(tl.int32), mask=legal)
        count += tl.sum(legal.to(tl.int32), 0)
    tl.debug_barrier()
    # `scratch`: of each item, or node, that is gone the node above, ascending; read and written in turn.
    for up in tl.static_range(LEVELS):
        read = scratch + (up % 2) * room + begin
        write = scratch + ((up + 1) % 2) * room + begin
        out = emptied[LEVELS - 1 - up] + begin
        kept = begin * 0
        for start in range(0, count, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < count
            node = tl.load(read + k, mask=inside, other=-1)
            first_of = inside & (tl.load(read + k - 1, mask=inside & (k > 0), other=-1) != node)
            gone = end_of_run(read, k, count, node, first_of) - k
            if up == 0:
                first = tl.load(item_starts + node, mask=first_of, other=0)
                last = tl.load(item_starts + node + 1, mask=first_of, other=0)
                found = count_items(live, own, items, first, last, gone, first_of, FEW_ITEMS)
            else:
                first = tl.load(child_starts[LEVELS - up] + node, mask=first_of, other=0)
                last = tl.load(child_starts[LEVELS - up] + node + 1, mask=first_of, other=0)
                below = masks[LEVELS - up] + mask * mask_strides[LEVELS - up]
                found = count_children(below, first, last, gone, first_of, CHILDREN)
            empty = first_of & (found == gone)
            to = kept + tl.cumsum(empty.to(tl.int32), 0) - 1
            tl.store(out + to, node, mask=empty)
            if up < LEVELS - 1:
                parents = tl.load(num_nodes + LEVELS - 2 - up)
                tl.store(write + to, parent_of(child_starts[LEVELS - 1 - up], parents, node, empty, WAYS), mask=empty)
            kept += tl.sum(empty.to(tl.int32), 0)
        for start in range(kept, end - begin, BLOCK):
            k = start + tl.arange(0, BLOCK)
            tl.store(out + k, NO_NODE - (end - begin) + k, mask=k < end - begin)
        count = kept
        tl.debug_barrier()


def mask_exclude(
    tree: NodeMasks,
    excluded: Tensor,
    *,
    starts: Tensor,
    mask_index: Tensor,
    num_nodes: Tensor,
    emptied: Sequence[Tensor],
) -> None:
    room = excluded.shape[0]
    scratch = torch.empty(2 * room, dtype=torch.int32, device=excluded.device)
    mask_exclude_kernel[(mask_index.shape[0],)](
        excluded, starts, mask_index, num_nodes, tuple(emptied), scratch, tree.live, tree.allowed, tree.items,
        tree.item_starts, tree.child_starts, tree.masks, tuple(mask.stride(0) for mask in tree.masks),
        tree.allowed.stride(0), room, LEVELS=tree.levels, BLOCK=BLOCK, FEW_ITEMS=FEW_ITEMS,
        CHILDREN=CHILDREN, WAYS=WAYS, num_warps=WARPS,
    )  # fmt: skip
