"""The first pass over a level's logits: log-normalizers, and the best legal child of each segment of a row."""

from __future__ import annotations

import triton
import triton.language as tl

from xgr_kernels.beam_select.legality import child_logits, emptied_among, fold, ordered_bits, owner_of

ILLEGAL = tl.constexpr(-0x7FFFFFFF - 1)
"""The bits of a segment without a legal child: below those of any score."""


@triton.jit
def best_of_segments(
    segment_bits, row_info, norms, logits, scores, nodes, row_starts, child_starts, child_codes, node_masks,
    mask_index, emptied_starts, emptied_nodes, log_normalizer, requests, num_children, logits_stride,
    CODES: tl.constexpr, REQUESTS: tl.constexpr, SEGMENTS: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
    CODES_BLOCK: tl.constexpr, FEW: tl.constexpr, GIVEN: tl.constexpr, PDL: tl.constexpr,
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
    if HELD or not GIVEN:
        held = tl.load(logits_row + lane, mask=lane < CODES, other=float("-inf")).to(tl.float32)

    score = tl.load(scores + row)
    node = tl.load(nodes + row)
    request = owner_of(row, row_starts, requests, REQUESTS)
    alive = (score > float("-inf")) & (request < requests)  # the rest is padding
    request = tl.minimum(request, requests - 1)
    node = tl.where(alive, node, 0)
    first = tl.load(child_starts + node)
    count = tl.where(alive, tl.load(child_starts + node + 1) - first, 0)
    mask_offset = tl.load(mask_index + request).to(tl.int64) * num_children
    emptied_first = tl.load(emptied_starts + request)
    emptied_last = tl.load(emptied_starts + request + 1)
    emptied_first, emptied_last = emptied_among(emptied_nodes, emptied_first, emptied_last, first, count)
    tl.store(row_info + row * 4, first)
    tl.store(row_info + row * 4 + 1, count)
    tl.store(row_info + row * 4 + 2, request)

    size = tl.cdiv(count, SEGMENTS)
    segment = tl.arange(0, SEGMENTS)
    best = tl.full([SEGMENTS], float("-inf"), tl.float32)
    peak = -3.0e38
    total = 0.0
    if not GIVEN:
        peak, total = fold(held, peak, total)
        for start in range(CODES_BLOCK, CODES, CODES_BLOCK):
            code = start + lane
            values = tl.load(logits_row + code, mask=code < CODES, other=float("-inf")).to(tl.float32)
            peak, total = fold(values, peak, total)
    offset = mask_offset + first
    dense = HELD & (count == CODES) & (emptied_last - emptied_first <= FEW) & (offset % 16 == 0)
    if dense:
        if HELD:
            legal = tl.load(node_masks + offset // 16 * 16 + lane) != 0
            for i in range(emptied_first, emptied_last):
                legal = legal & (lane != tl.load(emptied_nodes + i) - first)
            values = tl.where(legal, held, float("-inf"))
            best = tl.max(tl.reshape(values, [SEGMENTS, CODES_BLOCK // SEGMENTS]), 1)
    elif size <= SHORT:
        values = child_logits(
            logits_row, node_masks + mask_offset, child_codes, emptied_nodes, emptied_first, emptied_last, first,
            count, size, 0, SEGMENTS, SHORT,
        )  # fmt: skip
        best = tl.max(values, 1)
    else:
        for start in range(0, size, LONG):
            values = child_logits(
                logits_row, node_masks + mask_offset, child_codes, emptied_nodes, emptied_first, emptied_last, first,
                count, size, start, SEGMENTS, LONG,
            )  # fmt: skip
            best = tl.maximum(best, tl.max(values, 1))
    norm = peak + tl.log(total)
    if GIVEN:
        norm = tl.load(log_normalizer + row).to(tl.float32)
    bits = tl.where(best > float("-inf"), ordered_bits(score + (best - norm)), ILLEGAL)
    tl.store(segment_bits + row.to(tl.int64) * SEGMENTS + segment, bits)
    tl.store(norms + row, norm)
