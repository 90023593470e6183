"""Which children are legal: the request's mask, less the nodes that its exclusions emptied."""

from __future__ import annotations

import triton
import triton.language as tl

PIVOTS = tl.constexpr(128)


@triton.jit
def ordered_bits(score):
    """int32 in the order of the float32 scores."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def lower_bound(values, low, high, wanted):
    """The first place in the sorted values[low:high] whose value is at least `wanted`.

    128 pivots at a time, so that 10,000 values take two rounds."""
    while low < high:
        step = (high - low + PIVOTS - 1) // PIVOTS
        at = low + tl.arange(0, PIVOTS) * step
        below = (at < high) & (tl.load(values + at, mask=at < high, other=0) < wanted)
        found = tl.sum(below.to(tl.int32), 0)
        # The last pivot below it is low + (found - 1) · step, the first that isn't low + found · step.
        high = tl.where(found == 0, low, tl.minimum(high, low + found * step))
        low = tl.where(found == 0, low, low + (found - 1) * step + 1)
    return low


@triton.jit
def is_emptied(node, emptied_nodes, first, last):
    """Whether each node is in the sorted emptied_nodes[first:last]; first, last: scalars or of node's shape."""
    low, high = node * 0 + first, node * 0 + last
    rounds = tl.max(tl.ravel(high - low), 0)
    while rounds > 0:
        middle = (low + high) // 2
        open_ = low < high
        below = tl.load(emptied_nodes + middle, mask=open_, other=0) < node
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
        rounds = rounds // 2
    inside = low < last
    return inside & (tl.load(emptied_nodes + low, mask=inside, other=-1) == node)
