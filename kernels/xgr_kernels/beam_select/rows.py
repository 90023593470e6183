"""The first pass over a level's logits: log-normalizers, and the best legal child of each segment of a row."""

from __future__ import annotations

import triton
import triton.language as tl

from xgr_kernels.beam_select.legality import is_emptied, lower_bound, ordered_bits

ILLEGAL = tl.constexpr(-0x7FFFFFFF - 1)
"""The bits of a segment without a legal child: below those of any score."""


@triton.jit
def _fold(values, peak, total):
    """One online log-sum-exp step over a tile."""
    values = tl.ravel(values)
    new_peak = tl.maximum(peak, tl.max(values, 0))
    return new_peak, total * tl.exp(peak - new_peak) + tl.sum(tl.exp(values - new_peak), 0)


@triton.jit
def _child_logits(
    logits_row, mask_row, child_codes, emptied_nodes, emptied_first, emptied_last, first, count, size, start,
    SEGMENTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Logits [SEGMENTS, TILE] of the children start : start + TILE of each segment, -inf where there is none."""
    segment, i = tl.arange(0, SEGMENTS)[:, None], start + tl.arange(0, TILE)[None, :]
    child = segment * size + i
    inside = (i < size) & (child < count)
    code = tl.load(child_codes + first + child, mask=inside, other=0)
    legal = inside & (tl.load(mask_row + first + child, mask=inside, other=0) != 0)
    if emptied_first < emptied_last:
        legal = legal & (is_emptied(first + child, emptied_nodes, emptied_first, emptied_last) == 0)
    return tl.load(logits_row + code, mask=legal, other=float("-inf")).to(tl.float32)


@triton.jit
def best_of_segments(
    segment_bits, row_info, norms, logits, scores, nodes, row_starts, child_starts, child_codes, node_masks,
    mask_index, emptied_starts, emptied_nodes, log_normalizer, requests, num_children, logits_stride,
    CODES: tl.constexpr, REQUESTS: tl.constexpr, SEGMENTS: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
    CODES_BLOCK: tl.constexpr, FEW: tl.constexpr, NORMALIZER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    logits_row = logits + row.to(tl.int64) * logits_stride
    lane = tl.arange(0, CODES_BLOCK)
    # The first block of logits is on its way while the row's node is looked up, and serves twice where all of a
    # level's codes are children.
    HELD: tl.constexpr = (CODES == CODES_BLOCK) and (CODES_BLOCK >= 16 * SEGMENTS)
    if (NORMALIZER == "level") or HELD:
        held = tl.load(logits_row + lane, mask=lane < CODES, other=float("-inf")).to(tl.float32)

    owner = tl.arange(0, REQUESTS)
    ends = tl.load(row_starts + owner + 1, mask=owner < requests, other=0x7FFFFFFF)
    score = tl.load(scores + row)
    node = tl.load(nodes + row)
    request = tl.sum((ends <= row).to(tl.int32), 0)
    alive = (score > float("-inf")) & (request < requests)  # the rest is padding
    request = tl.minimum(request, requests - 1)
    node = tl.where(alive, node, 0)
    first = tl.load(child_starts + node)
    count = tl.where(alive, tl.load(child_starts + node + 1) - first, 0)
    mask_offset = tl.load(mask_index + request).to(tl.int64) * num_children
    emptied_first = tl.load(emptied_starts + request)
    emptied_last = tl.load(emptied_starts + request + 1)
    if (count > 0) & (emptied_first < emptied_last):
        emptied_first = lower_bound(emptied_nodes, emptied_first, emptied_last, first)
        emptied_last = tl.minimum(emptied_last, emptied_first + count)  # they differ, so there can't be more
        emptied_last = lower_bound(emptied_nodes, emptied_first, emptied_last, first + count)
    tl.store(row_info + row * 4, first)
    tl.store(row_info + row * 4 + 1, count)
    tl.store(row_info + row * 4 + 2, request)

    size = tl.cdiv(count, SEGMENTS)
    segment = tl.arange(0, SEGMENTS)
    best = tl.full([SEGMENTS], float("-inf"), tl.float32)
    peak = -3.0e38
    total = 0.0
    if NORMALIZER == "level":
        peak, total = _fold(held, peak, total)
        for start in range(CODES_BLOCK, CODES, CODES_BLOCK):
            code = start + lane
            values = tl.load(logits_row + code, mask=code < CODES, other=float("-inf")).to(tl.float32)
            peak, total = _fold(values, peak, total)
    offset = mask_offset + first
    dense = HELD & (count == CODES) & (emptied_last - emptied_first <= FEW) & (offset % 16 == 0)
    if dense:
        if HELD:
            legal = tl.load(node_masks + offset // 16 * 16 + lane) != 0
            for i in range(emptied_first, emptied_last):
                legal = legal & (lane != tl.load(emptied_nodes + i) - first)
            values = tl.where(legal, held, float("-inf"))
            best = tl.max(tl.reshape(values, [SEGMENTS, CODES_BLOCK // SEGMENTS]), 1)
            if NORMALIZER == "legal":
                peak, total = _fold(values, peak, total)
    elif size <= SHORT:
        values = _child_logits(
            logits_row, node_masks + mask_offset, child_codes, emptied_nodes, emptied_first, emptied_last, first,
            count, size, 0, SEGMENTS, SHORT,
        )  # fmt: skip
        best = tl.max(values, 1)
        if NORMALIZER == "legal":
            peak, total = _fold(values, peak, total)
    else:
        for start in range(0, size, LONG):
            values = _child_logits(
                logits_row, node_masks + mask_offset, child_codes, emptied_nodes, emptied_first, emptied_last, first,
                count, size, start, SEGMENTS, LONG,
            )  # fmt: skip
            best = tl.maximum(best, tl.max(values, 1))
            if NORMALIZER == "legal":
                peak, total = _fold(values, peak, total)
    norm = peak + tl.log(total)
    if NORMALIZER == "given":
        norm = tl.load(log_normalizer + row).to(tl.float32)
    bits = tl.where(best > float("-inf"), ordered_bits(score + (best - norm)), ILLEGAL)
    tl.store(segment_bits + row.to(tl.int64) * SEGMENTS + segment, bits)
    tl.store(norms + row, norm)
