"""mask_exclude in Triton: one program a request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.legal_below import count_children, count_items
from xgr_kernels.node_masks import NodeMasks

BLOCK, CHUNK = 512, 16
NO_NODE = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize=["n", "allowed_stride"])  # compiled once for catalogs of all sizes
def mask_exclude_kernel(
    excluded, starts, mask_index, emptied, order, live, allowed, items, item_starts, child_starts, masks, mask_strides,
    allowed_stride, n,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    begin, end = tl.load(starts + request), tl.load(starts + request + 1)
    mask = tl.load(mask_index + request).to(tl.int64)
    own = allowed + mask * allowed_stride
    count = begin * 0
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < end
        row = tl.load(excluded + i, mask=inside, other=0)
        legal = (tl.load(live + row, mask=inside, other=0) != 0) & (tl.load(own + row, mask=inside, other=0) != 0)
        legal = legal & inside
        rank = tl.cumsum(legal.to(tl.int32), 0)
        tl.store(order + begin + count + rank - 1, i, mask=legal)
        count += tl.sum(legal.to(tl.int32), 0)
    tl.debug_barrier()
    # `order`: of each node that may be emptied, where among the exclusions one below it is; read and written in turn.
    for up in tl.static_range(LEVELS):
        read = order + (up % 2) * n + begin
        write = order + ((up + 1) % 2) * n + begin
        nodes = excluded + (LEVELS - up) * n
        out = emptied[LEVELS - 1 - up] + begin
        kept = begin * 0
        for start in range(0, count, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < count
            i = tl.load(read + k, mask=inside, other=0)
            node = tl.load(nodes + i, mask=inside, other=-1)
            has_before = inside & (k > 0)
            before = tl.load(nodes + tl.load(read + k - 1, mask=has_before, other=0), mask=has_before, other=-1)
            first_of = inside & (before != node)
            # Where the node's run ends: as long as that is, as many of its children are gone.
            low = k + 1
            high = tl.where(first_of, count, low)
            while tl.max(high - low, 0) > 0:
                middle = (low + high) // 2
                open_ = low < high
                there = tl.load(nodes + tl.load(read + middle, mask=open_, other=0), mask=open_, other=-1)
                low = tl.where(open_ & (there == node), middle + 1, low)
                high = tl.where(open_ & (there != node), middle, high)
            gone = low - k
            if up == 0:
                first = tl.load(item_starts + node, mask=first_of, other=0)
                last = tl.load(item_starts + node + 1, mask=first_of, other=0)
                found = count_items(live, own, items, first, last, gone, first_of, CHUNK)
            else:
                first = tl.load(child_starts[LEVELS - up] + node, mask=first_of, other=0)
                last = tl.load(child_starts[LEVELS - up] + node + 1, mask=first_of, other=0)
                below = masks[LEVELS - up] + mask * mask_strides[LEVELS - up]
                found = count_children(below, first, last, gone, first_of, CHUNK)
            empty = first_of & (found == gone)
            rank = tl.cumsum(empty.to(tl.int32), 0)
            tl.store(out + kept + rank - 1, node, mask=empty)
            tl.store(write + kept + rank - 1, i, mask=empty)
            kept += tl.sum(empty.to(tl.int32), 0)
        for start in range(kept, end - begin, BLOCK):
            k = start + tl.arange(0, BLOCK)
            tl.store(out + k, NO_NODE - (end - begin) + k, mask=k < end - begin)
        count = kept
        tl.debug_barrier()


def mask_exclude(
    tree: NodeMasks, excluded: Tensor, *, starts: Tensor, mask_index: Tensor, emptied: Sequence[Tensor]
) -> None:
    n = excluded.shape[1]
    if n:
        order = torch.empty(2 * n, dtype=torch.int32, device=excluded.device)
        mask_exclude_kernel[(mask_index.shape[0],)](
            excluded, starts, mask_index, tuple(emptied), order, tree.live, tree.allowed, tree.items, tree.item_starts,
            tree.child_starts, tree.masks, tuple(mask.stride(0) for mask in tree.masks), tree.allowed.stride(0), n,
            LEVELS=tree.levels, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=8,
        )  # fmt: skip
