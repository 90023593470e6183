"""Legal items of leaves and legal children of nodes, counted as far as it matters: for the kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_items(live, allowed, items, first, last, most, counting, CHUNK: tl.constexpr):
    """Of each place [BLOCK] that is `counting`, the items[first:last] that are live and allowed; of one with more than
    `most`, some number above that."""
    found = first * 0
    while tl.max((counting & (first < last) & (found <= most)).to(tl.int32), 0) > 0:
        place = first[:, None] + tl.arange(0, CHUNK)[None, :]
        look = (counting & (found <= most))[:, None] & (place < last[:, None])
        row = tl.load(items + place, mask=look, other=0)
        legal = (tl.load(live + row, mask=look, other=0) != 0) & (tl.load(allowed + row, mask=look, other=0) != 0)
        found += tl.sum((legal & look).to(tl.int32), 1)
        first += CHUNK
    return found


@triton.jit
def count_children(mask_row, first, last, most, counting, CHUNK: tl.constexpr):
    """The same of the nodes first : last that are legal in mask_row."""
    found = first * 0
    while tl.max((counting & (first < last) & (found <= most)).to(tl.int32), 0) > 0:
        place = first[:, None] + tl.arange(0, CHUNK)[None, :]
        look = (counting & (found <= most))[:, None] & (place < last[:, None])
        legal = tl.load(mask_row + place, mask=look, other=0) != 0
        found += tl.sum((legal & look).to(tl.int32), 1)
        first += CHUNK
    return found
