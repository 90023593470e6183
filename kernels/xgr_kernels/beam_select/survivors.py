"""The candidates that reach τ, and their order."""

from __future__ import annotations

import triton
import triton.language as tl

from xgr_kernels.beam_select.legality import is_emptied, ordered_bits
from xgr_kernels.beam_select.rows import ILLEGAL
from xgr_kernels.beam_select.threshold import NEVER, list_place, most_listed

ALL_BITS = tl.constexpr(0x7FFFFFFF)
NO_KEY = tl.constexpr(-0x7FFFFFFFFFFFFFFF - 1)


@triton.jit
def keep_survivors(
    kept_keys, kept_rows, children_kept, thresholds, segment_list, segment_bits, row_info, norms, logits, scores,
    out_starts, child_codes, node_masks, mask_index, emptied_starts, emptied_nodes, slots, codes, num_children,
    logits_stride, longest,
    SEGMENTS: tl.constexpr, TOGETHER: tl.constexpr, TILE: tl.constexpr, ALIGN: tl.constexpr, EARLY_STOP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A survivor's key holds its score's bits, then its node, the smaller the better. Of the buffer, request r has
    `longest` times its part of the list of segments. Without the early stop all legal children are looked at again."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
    at = tl.where(slot < slots, slot, -1)
    if EARLY_STOP:
        at = tl.load(segment_list + slot, mask=slot < slots, other=-1)
    used = at >= 0
    if tl.max(at, 0) >= 0:
        row = at // SEGMENTS
        best = tl.load(segment_bits + at, mask=used, other=ILLEGAL)
        first = tl.load(row_info + row * 4, mask=used, other=0)
        count = tl.load(row_info + row * 4 + 1, mask=used, other=0)
        request = tl.max(tl.load(row_info + row * 4 + 2, mask=used, other=0), 0)  # one for all slots of a program
        norm = tl.load(norms + row, mask=used, other=0.0)
        score = tl.load(scores + row, mask=used, other=0.0)
        least, most_node = tl.load(thresholds + request * 2), tl.load(thresholds + request * 2 + 1)
        emptied_first, emptied_last = tl.load(emptied_starts + request), tl.load(emptied_starts + request + 1)
        mask_row = node_masks + tl.load(mask_index + request).to(tl.int64) * num_children
        place = list_place(out_starts, request, ALIGN).to(tl.int64) * longest
        size = tl.cdiv(count, SEGMENTS)
        begin = at % SEGMENTS * size
        count = tl.minimum(count, begin + size)
        reaches = (best > least) | ((best == least) & (first + begin <= most_node))
        used = used & (best != ILLEGAL)
        if EARLY_STOP:
            used = used & reaches
        logits_row = logits + row.to(tl.int64) * logits_stride
        for start in range(0, tl.max(tl.where(used, size, 0), 0), TILE):
            child = begin[:, None] + start + tl.arange(0, TILE)[None, :]
            inside = used[:, None] & (child < count[:, None])
            node = first[:, None] + child
            code = tl.load(child_codes + node, mask=inside, other=0)
            legal = tl.load(mask_row + node, mask=inside, other=0) != 0
            value = tl.load(logits_row[:, None] + code, mask=inside, other=float("-inf")).to(tl.float32)
            bits = ordered_bits(score[:, None] + (value - norm[:, None]))
            keep = inside & legal & (value > float("-inf")) & (bits >= least)
            if not EARLY_STOP:
                keep = keep & reaches[:, None]  # the buffer has room for these
            if emptied_first < emptied_last:
                keep = keep & (is_emptied(node, emptied_nodes, emptied_first, emptied_last) == 0)
            kept = tl.ravel(keep.to(tl.int32))
            to = place + tl.atomic_add(children_kept + request, tl.sum(kept, 0), sem="relaxed")
            to = to + tl.reshape(tl.cumsum(kept, 0), [TOGETHER, TILE]) - 1
            tl.store(kept_keys + to, (bits.to(tl.int64) << 32) | (node ^ ALL_BITS).to(tl.int64), mask=keep)
            tl.store(kept_rows + to, tl.zeros([TOGETHER, TILE], tl.int32) + row[:, None], mask=keep)


@triton.jit
def _crowded(survivors, width, CROWD: tl.constexpr):
    """Whether the survivors are too many to be ranked as they are."""
    return survivors > tl.maximum(most_listed(width), CROWD)


@triton.jit
def _load_keys(keys, at, end):
    return tl.load(keys + at, mask=at < end, other=NO_KEY)


@triton.jit
def _score_bits(key):
    return (key >> 32).to(tl.int32)


@triton.jit
def _reach(keys, held_bits, survivors, least, BLOCK: tl.constexpr):
    """How many survivors' scores reach `least`."""
    found = tl.sum((held_bits >= least).to(tl.int32), 0)
    for start in range(BLOCK, survivors, BLOCK):
        bits = _score_bits(_load_keys(keys, start + tl.arange(0, BLOCK), survivors))
        found += tl.sum((bits >= least).to(tl.int32), 0)
    return found


@triton.jit
def _reach_key(keys, survivors, least, BLOCK: tl.constexpr):
    """How many survivors' keys reach `least`."""
    found = 0
    for start in range(0, survivors, BLOCK):
        found += tl.sum((_load_keys(keys, start + tl.arange(0, BLOCK), survivors) >= least).to(tl.int32), 0)
    return found


@triton.jit
def narrow_survivors(
    few_keys, few_rows, few, kept_keys, kept_rows, children_kept, out_starts, longest,
    CROWD: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of survivors that crowd, between width and 5/4 · width."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    request = tl.program_id(0)
    survivors = tl.load(children_kept + request)
    width = tl.load(out_starts + request + 1) - tl.load(out_starts + request)
    if _crowded(survivors, width, CROWD):
        room = most_listed(width)
        place = list_place(out_starts, request, ALIGN)
        keys, rows = kept_keys + place.to(tl.int64) * longest, kept_rows + place.to(tl.int64) * longest
        lane = tl.arange(0, BLOCK)
        held_bits = _score_bits(_load_keys(keys, lane, survivors))
        # The held ones bound the search well enough: few others reach beyond them, if any.
        low = tl.min(tl.where(lane < survivors, held_bits, NEVER), 0)
        high = tl.max(held_bits, 0) + 1
        found = _reach(keys, held_bits, survivors, low, BLOCK)
        if _reach(keys, held_bits, survivors, high, BLOCK) >= width:
            low = high
            high = NEVER
            found = _reach(keys, held_bits, survivors, low, BLOCK)
        if found < width:
            low = ILLEGAL + 1
            found = survivors
        while (found > room) & (low + 1 < high):
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            reached = _reach(keys, held_bits, survivors, middle, BLOCK)
            enough = reached >= width
            low = tl.where(enough, middle, low)
            found = tl.where(enough, reached, found)
            high = tl.where(enough, high, middle)
        least = low.to(tl.int64) << 32
        if found > room:
            # Too many of equal score: keys differ, so that the same search over them ends.
            key_high = high.to(tl.int64) << 32
            while found > room:
                key = (least >> 1) + (key_high >> 1) + (least & key_high & 1)
                reached = _reach_key(keys, survivors, key, BLOCK)
                enough = reached >= width
                least = tl.where(enough, key, least)
                found = tl.where(enough, reached, found)
                key_high = tl.where(enough, key_high, key)
        listed = 0
        for start in range(0, survivors, BLOCK):
            block = _load_keys(keys, start + lane, survivors)
            chosen = block >= least
            to = place + listed + tl.cumsum(chosen.to(tl.int32), 0) - 1
            tl.store(few_keys + to, block, mask=chosen)
            tl.store(few_rows + to, tl.load(rows + start + lane, mask=chosen, other=0), mask=chosen)
            listed += tl.sum(chosen.to(tl.int32), 0)
        tl.store(few + request, found)


@triton.jit
def place_survivors(
    out_scores, out_parents, out_nodes, few_keys, few_rows, few, kept_keys, kept_rows, children_kept, out_starts,
    longest,
    CROWD: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    request = tl.program_id(0)
    out_first = tl.load(out_starts + request)
    width = tl.load(out_starts + request + 1) - out_first
    survivors = tl.load(children_kept + request)
    place = list_place(out_starts, request, ALIGN).to(tl.int64)
    keys, rows = kept_keys + place * longest, kept_rows + place * longest
    if _crowded(survivors, width, CROWD):
        survivors = tl.load(few + request)
        keys, rows = few_keys + place, few_rows + place
    for start in range(tl.program_id(1) * BLOCK, survivors, tl.num_programs(1) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        key = _load_keys(keys, i, survivors)
        before = tl.zeros([BLOCK, OTHERS], tl.int32)
        for other in range(0, survivors, OTHERS):
            others = _load_keys(keys, other + tl.arange(0, OTHERS), survivors)
            before += (others[None, :] > key[:, None]).to(tl.int32)
        rank = tl.sum(before, 1)
        chosen = (i < survivors) & (rank < width)
        bits = _score_bits(key)
        score = (bits ^ ((bits >> 31) & ALL_BITS)).to(tl.float32, bitcast=True)
        out = out_first + rank
        tl.store(out_scores + out, score, mask=chosen)
        tl.store(out_parents + out, tl.load(rows + i, mask=chosen, other=0), mask=chosen)
        tl.store(out_nodes + out, (key & ALL_BITS).to(tl.int32) ^ ALL_BITS, mask=chosen)
