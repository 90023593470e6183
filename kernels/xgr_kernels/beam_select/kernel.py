"""beam_select in Triton: four kernels, no host synchronisation, no limit on ties or skew.

1. One program a row: its log-normalizer, and for each segment of its children the best legal one (score, node).
2. One program a request: τ, the width-th best of its segments' bests, by bisection over their bits. Nodes break ties,
   so exactly `width` segments reach τ, and what reaches τ lies in them: at most width · SEGMENT candidates, so
   that their buffer can't overflow, however the scores lie.
3. One program a row: stop at once if no segment reaches τ; else append the candidates that do.
4. A survivor's place is the number of survivors before it: its order does not depend on how they were appended.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_NODE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _children(row, request, nodes, scores, child_starts, mask_index):
    """First child of the row's node and how many it has (none where the beam is dead), and its request's mask."""
    alive = tl.load(scores + row) > float("-inf")
    node = tl.maximum(tl.load(nodes + row), 0)
    first = tl.load(child_starts + node)
    count = tl.where(alive, tl.load(child_starts + node + 1) - first, 0)
    return first, count, tl.load(mask_index + request)


@triton.jit
def _lower_bound(values, low, high, wanted):
    """The first place in the sorted values[low:high] whose value is at least `wanted`."""
    while low < high:
        middle = (low + high) // 2
        below = tl.load(values + middle) < wanted
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def _emptied_range(request, first, count, emptied_starts, emptied_nodes):
    """Where in emptied_nodes those of this row's children lie."""
    low, high = tl.load(emptied_starts + request), tl.load(emptied_starts + request + 1)
    begin = _lower_bound(emptied_nodes, low, high, first)
    return begin, _lower_bound(emptied_nodes, begin, high, first + count)


@triton.jit
def _child_logits(
    logits_row, node, last, mask, child_codes, node_masks, num_children, emptied_nodes, emptied_first, emptied_last
):
    """Logits of these children, -inf where illegal."""
    legal = node < last
    legal = legal & (tl.load(node_masks + mask.to(tl.int64) * num_children + node, mask=legal, other=0) != 0)
    for i in range(emptied_first, emptied_last):
        legal = legal & (node != tl.load(emptied_nodes + i))
    code = tl.load(child_codes + node, mask=legal, other=0)
    return tl.load(logits_row + code, mask=legal, other=float("-inf")).to(tl.float32)


@triton.jit
def _fold(values, peak, total):
    """One online log-sum-exp step."""
    new_peak = tl.maximum(peak, tl.max(values, 0))
    return new_peak, total * tl.exp(peak - new_peak) + tl.sum(tl.exp(values - new_peak), 0)


@triton.jit
def _request_of(row, row_starts, requests, REQUESTS: tl.constexpr):
    request = tl.arange(0, REQUESTS)
    last = tl.load(row_starts + request + 1, mask=request < requests, other=NO_NODE)
    return tl.sum((last <= row).to(tl.int32), 0)


@triton.jit
def _best_of_segments(
    segment_scores, segment_nodes, norms, logits, scores, nodes, row_starts, child_starts, child_codes, node_masks,
    mask_index, emptied_starts, emptied_nodes, log_normalizer, requests, codes, num_children, logits_stride,
    REQUESTS: tl.constexpr, SEGMENTS: tl.constexpr, SEGMENTS_PADDED: tl.constexpr, SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr, CODES_BLOCK: tl.constexpr, NORMALIZER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    request = _request_of(row, row_starts, requests, REQUESTS)
    first, count, mask = _children(row, request, nodes, scores, child_starts, mask_index)
    emptied_first, emptied_last = _emptied_range(request, first, count, emptied_starts, emptied_nodes)
    logits_row = logits + row.to(tl.int64) * logits_stride
    peak = -3.0e38
    total = 0.0
    if NORMALIZER == "given":
        norm = tl.load(log_normalizer + row).to(tl.float32)
    elif NORMALIZER == "level":
        if count > 0:
            for start in range(0, codes, CODES_BLOCK):
                code = start + tl.arange(0, CODES_BLOCK)
                values = tl.load(logits_row + code, mask=code < codes, other=float("-inf")).to(tl.float32)
                peak, total = _fold(values, peak, total)
        norm = peak + tl.log(total)
    else:
        for start in range(0, count, BLOCK):
            values = _child_logits(
                logits_row, first + start + tl.arange(0, BLOCK), first + count, mask, child_codes, node_masks,
                num_children, emptied_nodes, emptied_first, emptied_last,
            )  # fmt: skip
            peak, total = _fold(values, peak, total)
        norm = peak + tl.log(total)
    tl.store(norms + row, norm)

    score = tl.load(scores + row)
    per_block: tl.constexpr = BLOCK // SEGMENT
    place = row.to(tl.int64) * SEGMENTS
    for start in range(0, count, BLOCK):
        node = first + start + tl.arange(0, BLOCK)
        values = _child_logits(
            logits_row, node, first + count, mask, child_codes, node_masks, num_children, emptied_nodes, emptied_first,
            emptied_last,
        )  # fmt: skip
        values = tl.where(values > float("-inf"), score + (values - norm), float("-inf"))
        values = tl.reshape(values, [per_block, SEGMENT])
        best = tl.max(values, 1)
        best_node = tl.min(tl.where(values == best[:, None], tl.reshape(node, [per_block, SEGMENT]), NO_NODE), 1)
        segment = start // SEGMENT + tl.arange(0, per_block)
        tl.store(segment_scores + place + segment, best, mask=segment < SEGMENTS)
        tl.store(segment_nodes + place + segment, best_node, mask=segment < SEGMENTS)
    segment = tl.arange(0, SEGMENTS_PADDED)
    unused = (segment >= tl.cdiv(count, BLOCK) * per_block) & (segment < SEGMENTS)
    tl.store(segment_scores + place + segment, float("-inf"), mask=unused)


@triton.jit
def _ordered_bits(score):
    """int32 in the order of the float32 scores."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _count(bits, nodes, least, most_node):
    """How many are above `least`, or equal to it with a node up to most_node."""
    return tl.sum(((bits > least) | ((bits == least) & (nodes <= most_node))).to(tl.int32), 0)


@triton.jit
def _load_bits(segment_scores, segment_nodes, at, end):
    score = tl.load(segment_scores + at, mask=at < end, other=float("-inf"))
    legal = score > float("-inf")
    bits = tl.where(legal, _ordered_bits(score), -0x7FFFFFFF)
    return bits, tl.load(segment_nodes + at, mask=legal, other=NO_NODE)


@triton.jit
def _count_all(segment_scores, segment_nodes, begin, end, least, most_node, BLOCK: tl.constexpr):
    found = 0
    start = begin
    while start < end:
        bits, nodes = _load_bits(segment_scores, segment_nodes, start + tl.arange(0, BLOCK), end)
        found += _count(bits, nodes, least, most_node)
        start += BLOCK
    return found


@triton.jit
def _find_tau(
    tau_bits, tau_node, counts, out_scores, out_parents, out_nodes, beams_scanned, segment_scores, segment_nodes,
    row_starts, out_starts, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr, OUT_BLOCK: tl.constexpr,
):  # fmt: skip
    """τ of each request as (bits, node): a candidate survives if above, or equal with a node up to that one."""
    request = tl.program_id(0)
    first_row = tl.load(row_starts + request)
    begin = first_row.to(tl.int64) * SEGMENTS
    end = tl.load(row_starts + request + 1).to(tl.int64) * SEGMENTS
    out_first, out_last = tl.load(out_starts + request), tl.load(out_starts + request + 1)
    width = out_last - out_first
    bits, nodes = _load_bits(segment_scores, segment_nodes, begin + tl.arange(0, BLOCK), end)
    held = end - begin <= BLOCK  # then one load serves all rounds

    # The largest bits that `width` segments reach; the lowest value stands for -inf: every legal candidate survives.
    low = -0x7FFFFFFF
    high = 0x7F800000  # +inf
    while low < high:
        middle = low + ((high.to(tl.int64) - low + 1) // 2).to(tl.int32)
        if held:
            found = _count(bits, nodes, middle, NO_NODE)
        else:
            found = _count_all(segment_scores, segment_nodes, begin, end, middle, NO_NODE, BLOCK)
        enough = found >= width
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    # Among equals the smallest node up to which `width` are reached.
    node_low = 0
    node_high = 0x7FFFFFFF
    if held:
        found = _count(bits, nodes, low, NO_NODE)
    else:
        found = _count_all(segment_scores, segment_nodes, begin, end, low, NO_NODE, BLOCK)
    if (found > width) & (low > -0x7FFFFFFF):
        while node_low < node_high:
            middle = node_low + (node_high - node_low) // 2
            if held:
                found = _count(bits, nodes, low, middle)
            else:
                found = _count_all(segment_scores, segment_nodes, begin, end, low, middle, BLOCK)
            enough = found >= width
            node_high = tl.where(enough, middle, node_high)
            node_low = tl.where(enough, node_low, middle + 1)
    tl.store(tau_bits + request, low)
    tl.store(tau_node + request, node_high)
    tl.store(counts + request, 0)
    tl.store(beams_scanned + request, 0)
    for start in range(out_first, out_last, OUT_BLOCK):
        out = start + tl.arange(0, OUT_BLOCK)
        tl.store(out_scores + out, float("-inf"), mask=out < out_last)
        tl.store(out_parents + out, first_row, mask=out < out_last)
        tl.store(out_nodes + out, -1, mask=out < out_last)


@triton.jit
def _keep_survivors(
    kept_bits, kept_scores, kept_nodes, kept_rows, counts, beams_scanned, tau_bits, tau_node, segment_scores,
    segment_nodes, norms, logits, scores, nodes, row_starts, out_starts, child_starts, child_codes, node_masks,
    mask_index, emptied_starts, emptied_nodes, requests, num_children, logits_stride,
    REQUESTS: tl.constexpr, SEGMENTS: tl.constexpr, SEGMENTS_PADDED: tl.constexpr, SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    request = _request_of(row, row_starts, requests, REQUESTS)
    least, most_node = tl.load(tau_bits + request), tl.load(tau_node + request)
    place = row.to(tl.int64) * SEGMENTS
    segment = tl.arange(0, SEGMENTS_PADDED)
    bits, best_node = _load_bits(segment_scores, segment_nodes, place + segment, place + SEGMENTS)
    reached = tl.max(bits, 0) > -0x7FFFFFFF
    if reached & (_count(bits, best_node, least, most_node) > 0):
        tl.atomic_add(beams_scanned + request, 1)
        first, count, mask = _children(row, request, nodes, scores, child_starts, mask_index)
        emptied_first, emptied_last = _emptied_range(request, first, count, emptied_starts, emptied_nodes)
        logits_row = logits + row.to(tl.int64) * logits_stride
        score, norm = tl.load(scores + row), tl.load(norms + row)
        base = tl.load(out_starts + request).to(tl.int64) * SEGMENT
        for start in range(0, count, BLOCK):
            here = (segment >= start // SEGMENT) & (segment < (start + BLOCK) // SEGMENT)
            if _count(tl.where(here, bits, -0x7FFFFFFF - 1), best_node, least, most_node) > 0:
                node = first + start + tl.arange(0, BLOCK)
                values = _child_logits(
                    logits_row, node, first + count, mask, child_codes, node_masks, num_children, emptied_nodes,
                    emptied_first, emptied_last,
                )  # fmt: skip
                legal = values > float("-inf")
                values = tl.where(legal, score + (values - norm), float("-inf"))
                key = _ordered_bits(values)
                keep = legal & ((key > least) | ((key == least) & (node <= most_node)))
                offset = tl.cumsum(keep.to(tl.int32), 0) - 1
                at = base + tl.atomic_add(counts + request, tl.sum(keep.to(tl.int32), 0)) + offset
                tl.store(kept_bits + at, key, mask=keep)
                tl.store(kept_scores + at, values, mask=keep)
                tl.store(kept_nodes + at, node, mask=keep)
                tl.store(kept_rows + at, tl.zeros([BLOCK], tl.int32) + row, mask=keep)


@triton.jit
def _place_survivors(
    out_scores, out_parents, out_nodes, kept_bits, kept_scores, kept_nodes, kept_rows, counts, out_starts,
    SEGMENT: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    out_first = tl.load(out_starts + request)
    width = tl.load(out_starts + request + 1) - out_first
    base = out_first.to(tl.int64) * SEGMENT
    survivors = tl.load(counts + request)
    for start in range(tl.program_id(1) * BLOCK, survivors, tl.num_programs(1) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        bits = tl.load(kept_bits + base + i, mask=i < survivors, other=0)
        node = tl.load(kept_nodes + base + i, mask=i < survivors, other=0)
        rank = tl.zeros([BLOCK], tl.int32)
        for other in range(0, survivors, OTHERS):
            j = other + tl.arange(0, OTHERS)
            other_bits = tl.load(kept_bits + base + j, mask=j < survivors, other=-0x7FFFFFFF - 1)[None, :]
            other_node = tl.load(kept_nodes + base + j, mask=j < survivors, other=NO_NODE)[None, :]
            before = (other_bits > bits[:, None]) | ((other_bits == bits[:, None]) & (other_node < node[:, None]))
            rank += tl.sum(before.to(tl.int32), 1)
        chosen = (i < survivors) & (rank < width)
        out = out_first + rank
        tl.store(out_scores + out, tl.load(kept_scores + base + i, mask=chosen, other=0.0), mask=chosen)
        tl.store(out_parents + out, tl.load(kept_rows + base + i, mask=chosen, other=0), mask=chosen)
        tl.store(out_nodes + out, node, mask=chosen)


def beam_select(
    logits: Tensor,
    scores: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
    out_starts: Tensor,
    child_starts: Tensor,
    child_codes: Tensor,
    node_masks: Tensor,
    mask_index: Tensor,
    emptied_starts: Tensor,
    emptied_nodes: Tensor,
    normalizer: str,
    log_normalizer: Tensor | None,
    num_out: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, codes = logits.shape
    requests = len(mask_index)
    num_out = int(out_starts[-1]) if num_out is None else num_out
    segment = _segment(rows, requests, codes)
    segments = triton.cdiv(codes, segment)
    padded = triton.next_power_of_2(segments)
    block = max(segment, min(1024, triton.next_power_of_2(codes)))
    device = logits.device
    logits = logits if logits.stride(1) == 1 else logits.contiguous()

    def int32(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    def float32(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    chosen = float32(num_out), int32(num_out), int32(num_out)
    segment_scores, segment_nodes, norms = float32(rows, segments), int32(rows, segments), float32(rows)
    tau_bits, tau_node, counts, beams_scanned = (int32(requests) for _ in range(4))
    most = num_out * segment
    kept = int32(most), float32(most), int32(most), int32(most)
    trie = child_starts, child_codes, node_masks.view(torch.uint8), mask_index, emptied_starts, emptied_nodes
    sizes = {"REQUESTS": triton.next_power_of_2(requests), "SEGMENTS": segments, "SEGMENTS_PADDED": padded}
    if rows:
        _best_of_segments[(rows,)](
            segment_scores, segment_nodes, norms, logits, scores, nodes, row_starts, *trie,
            norms if log_normalizer is None else log_normalizer, requests, codes, len(child_codes), logits.stride(0),
            **sizes, SEGMENT=segment, BLOCK=block, CODES_BLOCK=min(4096, triton.next_power_of_2(codes)),
            NORMALIZER=normalizer if log_normalizer is None else "given", num_warps=8 if codes > 1024 else 4,
        )  # fmt: skip
    _find_tau[(requests,)](
        tau_bits, tau_node, counts, *chosen, beams_scanned, segment_scores, segment_nodes, row_starts, out_starts,
        SEGMENTS=segments, BLOCK=8192, OUT_BLOCK=256, num_warps=16,
    )  # fmt: skip
    if rows:
        _keep_survivors[(rows,)](
            *kept, counts, beams_scanned, tau_bits, tau_node, segment_scores, segment_nodes, norms, logits, scores,
            nodes, row_starts, out_starts, *trie, requests, len(child_codes), logits.stride(0),
            **sizes, SEGMENT=segment, BLOCK=block, num_warps=4,
        )  # fmt: skip
    _place_survivors[(requests, max(1, min(64, triton.cdiv(most, 64 * requests))))](
        *chosen, *kept, counts, out_starts, SEGMENT=segment, BLOCK=64, OTHERS=64, num_warps=4
    )
    return *chosen, beams_scanned


def _segment(rows: int, requests: int, codes: int) -> int:
    """Children to a segment: about 8,192 segments a request, which one program holds in registers to find τ."""
    wanted = triton.next_power_of_2(triton.cdiv(rows * codes, max(1, requests) * 8192))
    return max(16, min(1024, wanted))
