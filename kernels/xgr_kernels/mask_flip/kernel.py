"""mask_flip in Triton: one program a mask, so that no program waits for another's level below."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.legal_below import count_children, count_items
from xgr_kernels.mask_flip import FEW_FLIPS
from xgr_kernels.node_masks import NodeMasks

BLOCK, CHUNK = 128, 32
FEW_CHUNK = 128


@triton.jit(do_not_specialize=["n", "allowed_stride"])  # compiled once for catalogs of all sizes
def mask_flip_kernel(
    flips, live, allowed, items, item_starts, child_starts, masks, mask_strides, allowed_stride, n,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    mask = tl.program_id(0).to(tl.int64)
    own = allowed + mask * allowed_stride
    for start in range(0, n, BLOCK):  # each program for itself: all of them write the same
        i = start + tl.arange(0, BLOCK)
        row = tl.load(flips + i, mask=i < n, other=0)
        tl.store(live + row, tl.load(flips + n + i, mask=i < n, other=0) != 0, mask=i < n)
    tl.debug_barrier()
    for up in tl.static_range(LEVELS):
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            inside = i < n
            row = tl.load(flips + i, mask=inside, other=0)
            concerned = inside & (tl.load(own + row, mask=inside, other=0) != 0)
            node = tl.load(flips + (1 + LEVELS - up) * n + i, mask=inside, other=0)
            if up == 0:
                legal = tl.load(flips + n + i, mask=inside, other=0) != 0
                unsure = concerned & (legal == 0)
                first = tl.load(item_starts + node, mask=unsure, other=0)
                last = tl.load(item_starts + node + 1, mask=unsure, other=0)
                found = count_items(live, own, items, first, last, 0, unsure, CHUNK)
            else:
                below = masks[LEVELS - up] + mask * mask_strides[LEVELS - up]
                child = tl.load(flips + (2 + LEVELS - up) * n + i, mask=inside, other=0)
                legal = tl.load(below + child, mask=concerned, other=0) != 0
                unsure = concerned & (legal == 0)
                first = tl.load(child_starts[LEVELS - up] + node, mask=unsure, other=0)
                last = tl.load(child_starts[LEVELS - up] + node + 1, mask=unsure, other=0)
                found = count_children(below, first, last, 0, unsure, CHUNK)
            tl.store(
                masks[LEVELS - 1 - up] + mask * mask_strides[LEVELS - 1 - up] + node,
                legal | (found > 0),
                mask=concerned,
            )
        tl.debug_barrier()


def mask_flip(tree: NodeMasks, flips: Tensor) -> None:
    n = flips.shape[1]
    if n:
        few = n <= FEW_FLIPS
        mask_flip_kernel[(tree.allowed.shape[0],)](
            flips, tree.live, tree.allowed, tree.items, tree.item_starts, tree.child_starts, tree.masks,
            tuple(mask.stride(0) for mask in tree.masks), tree.allowed.stride(0), n, LEVELS=tree.levels,
            BLOCK=FEW_FLIPS if few else BLOCK, CHUNK=FEW_CHUNK if few else CHUNK, num_warps=1 if few else 4,
        )  # fmt: skip
