"""τ of each request, and the segments that reach it."""

from __future__ import annotations

import triton
import triton.language as tl

from xgr_kernels.beam_select.rows import ILLEGAL

ALIGNED = 8
"""A request's part of the list of segments begins at a multiple of so many, or of more."""
ANY_NODE = tl.constexpr(0x7FFFFFFF)
NEVER = tl.constexpr(0x7FFFFFFF)
"""Bits that no score has."""


@triton.jit
def most_listed(width):
    """The most segments, or survivors where they are too many, that stay of a request with so many beams out."""
    return width + width // 4 + 8


@triton.jit
def list_place(out_starts, request, ALIGN: tl.constexpr):
    """Where a request's part of the list of segments begins: it has room for `most_listed` of its beams."""
    out_first = tl.load(out_starts + request)
    return (out_first + out_first // 4) // ALIGN * ALIGN + 2 * ALIGN * request


def list_length(num_out: int, requests: int, align: int) -> int:
    """The length of the list of segments: `list_place` of the request behind the last."""
    return (num_out + num_out // 4) // align * align + 2 * align * requests


@triton.jit
def _load(segment_bits, at, end):
    return tl.load(segment_bits + at, mask=at < end, other=ILLEGAL)


@triton.jit
def _first_nodes(row_info, at, end, SEGMENTS: tl.constexpr):
    """The first node of each segment."""
    row = at // SEGMENTS
    first = tl.load(row_info + row * 4, mask=at < end, other=0)
    count = tl.load(row_info + row * 4 + 1, mask=at < end, other=0)
    return first + (at % SEGMENTS).to(tl.int32) * tl.cdiv(count, SEGMENTS)


@triton.jit
def _reach(segment_bits, held_bits, held, begin, end, least, BLOCK: tl.constexpr):
    """How many of the request's segments reach `least`."""
    if held:
        found = tl.sum((held_bits >= least).to(tl.int32), 0)
    else:
        found = 0
        for start in range(begin, end, BLOCK):
            bits = _load(segment_bits, start + tl.arange(0, BLOCK), end)
            found += tl.sum((bits >= least).to(tl.int32), 0)
    return found


@triton.jit
def _equal_up_to(segment_bits, row_info, begin, end, least, most_node, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr):
    """How many segments' bests equal `least`, those alone that begin at a node up to most_node."""
    found = 0
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        equal = (at < end) & (_load(segment_bits, at, end) == least)
        found += tl.sum((equal & (_first_nodes(row_info, at, end, SEGMENTS) <= most_node)).to(tl.int32), 0)
    return found


@triton.jit
def find_segments(
    thresholds, segment_list, children_kept, beams_scanned, out_scores, out_parents, out_nodes, segment_bits,
    row_info, row_starts, out_starts, requests, num_out, listed_length, num_children,
    SEGMENTS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr, EARLY_STOP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """thresholds [requests, 2]: τ's bits, and the last node at which a segment that equals it may begin."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    request = tl.program_id(0)
    first_row, last_row = tl.load(row_starts + request), tl.load(row_starts + request + 1)
    out_first, out_last = tl.load(out_starts + request), tl.load(out_starts + request + 1)
    begin, end = first_row * SEGMENTS, last_row * SEGMENTS
    width = out_last - out_first
    room = most_listed(width)
    lane = tl.arange(0, BLOCK)

    # Beams for which there are no candidates stay as they are here; so does what lies behind the last request's.
    for start in range(out_first, out_last, BLOCK):
        out = start + lane
        tl.store(out_scores + out, float("-inf"), mask=out < out_last)
        tl.store(out_parents + out, first_row, mask=out < out_last)
        tl.store(out_nodes + out, -1, mask=out < out_last)
    for start in range(tl.load(out_starts + requests) + request * BLOCK, num_out, requests * BLOCK):
        out = start + lane
        tl.store(out_scores + out, float("-inf"), mask=out < num_out)
        tl.store(out_parents + out, 0, mask=out < num_out)
        tl.store(out_nodes + out, -1, mask=out < num_out)
    behind = list_place(out_starts, requests, ALIGN)
    for start in range(behind + request * BLOCK, listed_length, requests * BLOCK):
        tl.store(segment_list + start + lane, -1, mask=start + lane < listed_length)

    held_bits = _load(segment_bits, begin + lane, end)
    held = end - begin <= BLOCK  # then one load serves all rounds
    highest = tl.max(held_bits, 0)
    lowest = tl.min(tl.where(held_bits == ILLEGAL, NEVER, held_bits), 0)
    for start in range(begin + BLOCK, end, BLOCK):
        bits = _load(segment_bits, start + lane, end)
        highest = tl.maximum(highest, tl.max(bits, 0))
        lowest = tl.minimum(lowest, tl.min(tl.where(bits == ILLEGAL, NEVER, bits), 0))
    # `low` is reached by enough segments (or by all there are), `high` by too few.
    low, high = lowest, highest + 1
    found = _reach(segment_bits, held_bits, held, begin, end, low, BLOCK)  # none, if none is legal
    if found < width:
        low = ILLEGAL + 1  # every legal child is wanted
    if width == 0:
        low, found = NEVER, 0
    while (found > room) & (low + 1 < high):
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        reached = _reach(segment_bits, held_bits, held, begin, end, middle, BLOCK)
        enough = reached >= width
        low = tl.where(enough, middle, low)
        found = tl.where(enough, reached, found)
        high = tl.where(enough, high, middle)
    most_node = ANY_NODE
    if found > room:
        # Too many equal `low`: of those, the ones that begin at the smallest nodes.
        missing = width - (found - _equal_up_to(segment_bits, row_info, begin, end, low, ANY_NODE, SEGMENTS, BLOCK))
        node_low, most_node = 0, num_children
        while node_low < most_node:
            node = (node_low + most_node) // 2
            reached = _equal_up_to(segment_bits, row_info, begin, end, low, node, SEGMENTS, BLOCK)
            most_node = tl.where(reached >= missing, node, most_node)
            node_low = tl.where(reached >= missing, node_low, node + 1)
    tl.store(thresholds + request * 2, low)
    tl.store(thresholds + request * 2 + 1, most_node)
    tl.store(children_kept + request, 0)

    place = list_place(out_starts, request, ALIGN)
    listed = 0
    scanned = 0
    for start in range(begin, end, BLOCK):
        at = start + lane
        bits = held_bits
        if start > begin:
            bits = _load(segment_bits, at, end)
        chosen = bits >= low
        if most_node < ANY_NODE:
            chosen = (bits > low) | ((bits == low) & (_first_nodes(row_info, at, end, SEGMENTS) <= most_node))
        looked_at = chosen if EARLY_STOP else bits > ILLEGAL
        by_row = tl.reshape(looked_at.to(tl.int32), [BLOCK // SEGMENTS, SEGMENTS])
        scanned += tl.sum(tl.max(by_row, 1), 0)
        if EARLY_STOP:
            taken = chosen.to(tl.int32)
            tl.store(segment_list + place + listed + tl.cumsum(taken, 0) - 1, at, mask=chosen)
            listed += tl.sum(taken, 0)
    tl.store(beams_scanned + request, scanned)
    for start in range(listed, list_place(out_starts, request + 1, ALIGN) - place, BLOCK):
        unused = place + start + lane
        tl.store(segment_list + unused, -1, mask=unused < list_place(out_starts, request + 1, ALIGN))
