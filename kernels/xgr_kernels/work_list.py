"""The plan of a paged attention in Triton: which program does what, chosen from the lengths on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.attention_plan import Plan, Tiling

OVERHEAD = 128
"""What starting and ending a program costs, in keys."""
MERGE = 256
"""What merging a part of 64 rows costs, in keys."""


@triton.jit
def _parts(length, limit, BLOCK_N: tl.constexpr):
    """Parts of at most `limit` keys, as equal as whole tiles allow: keys to a part, and how many parts."""
    parts = tl.maximum(tl.cdiv(length, limit), 1)
    chunk = tl.maximum(tl.cdiv(tl.cdiv(length, parts), BLOCK_N), 1) * BLOCK_N
    return chunk, tl.maximum(tl.cdiv(length, chunk), 1)


@triton.jit
def _tile_at(place, tiles, paired):
    """The tiles of a request in order: the last ones, which see the most, first.

    Paired: after half of them come the rest from the first on. Where all programs run at once, two to a multiprocessor,
    the one that sees the most then shares it with the one that sees the least.
    """
    half = tl.cdiv(tiles, 2)
    return tl.where(paired & (place >= half), place - half, tiles - 1 - place)


@triton.jit
def _place_of(tile, tiles, paired):
    half = tl.cdiv(tiles, 2)
    return tl.where(paired & (tile < tiles - half), tile + half, tiles - 1 - tile)


@triton.jit
def _plan_kernel(
    items, merges, starts, lengths, requests, kv_heads, most_items, overhead, merge,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SLOTS: tl.constexpr, MOST_SPLITS: tl.constexpr, REQUESTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program chooses the same part size, and writes the items of one request."""
    own = tl.program_id(0)
    r = tl.arange(0, REQUESTS)
    first_row = tl.load(starts + r, mask=r < requests, other=0)
    count = tl.load(starts + r + 1, mask=r < requests, other=0) - tl.where(r < requests, first_row, 0)
    length = tl.where(count > 0, tl.load(lengths + r, mask=r < requests, other=0), 0)
    tiles = tl.cdiv(count * GROUP, BLOCK_M)
    longest = tl.max(length, 0)

    limit = tl.maximum(longest, BLOCK_N)
    least = float("inf")
    splits = 1
    while splits <= MOST_SPLITS:
        candidate = tl.maximum(tl.cdiv(tl.cdiv(longest, splits), BLOCK_N), 1) * BLOCK_N
        chunk, parts = _parts(length, candidate, BLOCK_N)
        number = tiles * parts
        mean = chunk.to(tl.float32)
        if CAUSAL:
            mean = tl.minimum(mean, (length - count / 2) / parts)
        mean = tl.where(number > 0, mean + overhead, 0.0)
        work = tl.sum(number * mean, 0) * kv_heads / SLOTS
        cost = tl.maximum(work, tl.max(tl.where(number > 0, chunk, 0), 0) + overhead)
        if REQUESTS <= 16:  # with more, 64 say, these pairs took the plan from 6 to 49 µs
            # At least k + 1 programs of this size or more fall to one slot, if more than k times the slots are as long.
            as_long = tl.sum(tl.where(chunk[None, :] >= chunk[:, None], number[None, :], 0), 1)
            cost = tl.maximum(cost, tl.max(tl.cdiv(as_long * kv_heads, SLOTS) * mean, 0))
        cost += tl.sum(tl.where(parts > 1, number, 0), 0) * kv_heads * merge * BLOCK_M / (64 * SLOTS)
        cost = tl.where(tl.sum(number, 0) <= most_items, cost, float("inf"))
        limit = tl.where(cost < least, candidate, limit)
        least = tl.minimum(cost, least)
        splits += 1 + splits // 8

    chunk, parts = _parts(length, limit, BLOCK_N)
    number = tiles * parts
    mine = r == own
    own_chunk, own_parts = tl.sum(tl.where(mine, chunk, 0), 0), tl.sum(tl.where(mine, parts, 0), 0)
    own_tiles, own_length = tl.sum(tl.where(mine, tiles, 0), 0), tl.sum(tl.where(mine, length, 0), 0)
    own_first, own_count = tl.sum(tl.where(mine, first_row, 0), 0), tl.sum(tl.where(mine, count, 0), 0)
    earlier = (chunk > own_chunk) | ((chunk == own_chunk) & (r < own))
    begin = tl.sum(tl.where(earlier, number, 0), 0)
    paired = CAUSAL and tl.sum(number, 0) * kv_heads <= SLOTS
    i = tl.arange(0, BLOCK)
    for base in range(0, own_tiles * own_parts, BLOCK):
        index = base + i
        part, tile = index // own_tiles, _tile_at(index % own_tiles, own_tiles, paired)
        seen = tl.zeros([BLOCK], tl.int32) + own_length
        if CAUSAL:
            seen = own_length - own_count + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1, own_count)
        first = part * own_chunk
        inside = index < own_tiles * own_parts
        record = items + (begin + index) * 8
        idle = (first >= seen) & (part > 0)
        tl.store(record, own_first, mask=inside)
        tl.store(record + 1, own_first + own_count, mask=inside)
        tl.store(record + 2, tile, mask=inside)
        tl.store(record + 3, tl.where(idle, -1, own), mask=inside)
        tl.store(record + 4, first, mask=inside)
        tl.store(record + 5, tl.minimum(first + own_chunk, seen), mask=inside)
        tl.store(record + 6, tl.maximum(tl.cdiv(seen, own_chunk), 1), mask=inside)
        tl.store(record + 7, own_tiles, mask=inside)

    merging = tl.where(parts > 1, tiles, 0)
    if own_parts > 1:
        begin_merges = 1 + tl.sum(tl.where(r < own, merging, 0), 0)
        for base in range(0, own_tiles, BLOCK):
            tile = base + i
            seen = tl.zeros([BLOCK], tl.int32) + own_length
            if CAUSAL:
                seen = own_length - own_count + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1, own_count)
            item = tl.where(seen > own_chunk, begin + _place_of(tile, own_tiles, paired), -1)
            tl.store(merges + begin_merges + tile, item, mask=tile < own_tiles)
    if own == 0:
        tl.store(merges, tl.sum(merging, 0))
        for base in range(tl.sum(number, 0), most_items, BLOCK):
            tl.store(items + (base + i) * 8 + 3, -1, mask=base + i < most_items)


def make_plan(
    starts: Tensor, lengths: Tensor, tiling: Tiling, *,
    rows: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, causal: bool,
) -> Plan:  # fmt: skip
    """The work list of requests whose rows are starts[i] : starts[i + 1] of `rows`, over `lengths` keys [requests]."""
    requests, group, device = len(lengths), heads // kv_heads, starts.device
    tiles = triton.cdiv(rows * group, tiling.block_m) + min(requests, rows) - 1
    spread = triton.cdiv(tiling.slots, kv_heads)
    one = requests == 1 and not causal  # tiles of equal length gain nothing from more parts than there are slots
    most = max(tiles, spread) if one else tiles + spread
    if tiling.most_splits == 1:
        most = tiles
    items = torch.empty(most, 8, dtype=torch.int32, device=device)
    merges = torch.empty(1 + tiles, dtype=torch.int32, device=device)
    _plan_kernel[(requests,)](
        items, merges, starts, lengths, requests, kv_heads, most, OVERHEAD, MERGE,
        GROUP=group, CAUSAL=causal, BLOCK_M=tiling.block_m, BLOCK_N=tiling.block_n, SLOTS=tiling.slots,
        MOST_SPLITS=tiling.most_splits, REQUESTS=triton.next_power_of_2(requests), BLOCK=128, num_warps=4,
    )  # fmt: skip
    partial = torch.empty(most, kv_heads, tiling.block_m, dim, dtype=dtype, device=device)
    log_totals = torch.empty(most, kv_heads, tiling.block_m, dtype=torch.float32, device=device)
    return Plan(tiling, items, merges, partial, log_totals)
