"""Which children are legal: the request's mask, less the nodes that its exclusions emptied; and their logits."""

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
def bisect(values, low, high, wanted):
    """The same of each of `wanted`; low, high: scalars or of its shape."""
    low, high = wanted * 0 + low, wanted * 0 + high
    rounds = tl.max(tl.ravel(high - low), 0)
    while rounds > 0:
        middle = (low + high) // 2
        open_ = low < high
        below = tl.load(values + middle, mask=open_, other=0) < wanted
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
        rounds = rounds // 2
    return low


@triton.jit
def is_emptied(node, emptied_nodes, first, last):
    """Whether each node is in the sorted emptied_nodes[first:last]; first, last: scalars or of node's shape."""
    place = bisect(emptied_nodes, first, last, node)
    inside = place < last
    return inside & (tl.load(emptied_nodes + place, mask=inside, other=-1) == node)


@triton.jit
def is_legal(node, inside, mask_row, emptied_nodes, emptied_first, emptied_last):
    """Whether each node that is `inside` is legal."""
    legal = inside & (tl.load(mask_row + node, mask=inside, other=0) != 0)
    if emptied_first < emptied_last:
        legal = legal & (is_emptied(node, emptied_nodes, emptied_first, emptied_last) == 0)
    return legal


@triton.jit
def owner_of(row, row_starts, requests, REQUESTS: tl.constexpr):
    """Which request a row belongs to; `requests`, if none."""
    owner = tl.arange(0, REQUESTS)
    ends = tl.load(row_starts + owner + 1, mask=owner < requests, other=0x7FFFFFFF)
    return tl.sum((ends <= row).to(tl.int32), 0)


@triton.jit
def emptied_among(emptied_nodes, emptied_first, emptied_last, first, count):
    """Where in the sorted emptied_nodes[emptied_first:emptied_last] the nodes first : first + count begin and end."""
    if (count > 0) & (emptied_first < emptied_last):
        emptied_first = lower_bound(emptied_nodes, emptied_first, emptied_last, first)
        emptied_last = tl.minimum(emptied_last, emptied_first + count)  # they differ, so there can't be more
        emptied_last = lower_bound(emptied_nodes, emptied_first, emptied_last, first + count)
    return emptied_first, emptied_last


@triton.jit
def child_logits(
    logits_row, mask_row, child_codes, emptied_nodes, emptied_first, emptied_last, first, count, size, start,
    SEGMENTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Logits [SEGMENTS, TILE] of the children start : start + TILE of each segment, -inf where there is none."""
    segment, i = tl.arange(0, SEGMENTS)[:, None], start + tl.arange(0, TILE)[None, :]
    child = segment * size + i
    inside = (i < size) & (child < count)
    code = tl.load(child_codes + first + child, mask=inside, other=0)
    legal = is_legal(first + child, inside, mask_row, emptied_nodes, emptied_first, emptied_last)
    return tl.load(logits_row + code, mask=legal, other=float("-inf")).to(tl.float32)


@triton.jit
def fold(values, peak, total):
    """One online log-sum-exp step over a tile."""
    values = tl.ravel(values)
    new_peak = tl.maximum(peak, tl.max(values, 0))
    return new_peak, total * tl.exp(peak - new_peak) + tl.sum(tl.exp(values - new_peak), 0)
