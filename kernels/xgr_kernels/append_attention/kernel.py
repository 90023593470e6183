"""append_attention in Triton.

A tile is some new tokens of one user, times the query heads of one KV head. Few users: the context is split and a
second kernel merges. The last tiles, which see the most, start first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.paged import LOG2_E, MULTIPROCESSORS, Tiling, attend_pages, locate_tile, merge_splits, tile_width


@triton.jit
def _kernel(
    out, log_totals, q, k_pages, v_pages, page_table, query_starts, kv_lengths,
    tokens, users, kv_heads, max_pages, q_stride, head_stride, qk_scale,
    GROUP: tl.constexpr, SPLITS: tl.constexpr, USERS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_head, split = tl.program_id(1), tl.program_id(2)
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    user, tile, exists = locate_tile(query_starts, users, number, GROUP, BLOCK_M, USERS)
    if exists:
        first_token, last_token = tl.load(query_starts + user), tl.load(query_starts + user + 1)
        m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        token = first_token + m // GROUP
        head = kv_head * GROUP + m % GROUP
        d = tl.arange(0, BLOCK_D)
        real = token < last_token
        inside = real[:, None] & (d < DIM)[None, :]
        tile_q = tl.load(
            q + token[:, None] * q_stride + head[:, None] * head_stride + d[None, :], mask=inside, other=0.0
        )

        prefix = tl.load(kv_lengths + user) - (last_token - first_token)
        limits = prefix + m // GROUP + 1
        seen = tl.minimum(prefix + (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1, prefix + last_token - first_token)
        chunk = tl.cdiv(tl.cdiv(seen, SPLITS), BLOCK_N) * BLOCK_N
        first = tl.minimum(split * chunk, seen)
        stop = tl.minimum(first + chunk, seen)
        by_all = tl.minimum(prefix + tile * BLOCK_M // GROUP + 1, stop)
        whole = first + tl.maximum(by_all - first, 0) // BLOCK_N * BLOCK_N
        peak = tl.full([BLOCK_M], -1e30, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak, total, acc = attend_pages(
            tile_q, peak, total, acc, k_pages, v_pages, page_table + user * max_pages, first, whole, stop, limits,
            kv_head, kv_heads, qk_scale, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DESCRIPTORS, PRECISION,
        )  # fmt: skip
        at = (split * tokens + token).to(tl.int64) * kv_heads * GROUP + head
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + at[:, None] * DIM + d[None, :], result.to(out.dtype.element_ty), mask=inside)
        if SPLITS > 1:
            tl.store(log_totals + at, tl.where(total > 0, peak + tl.log2(total), float("-inf")), mask=real)


def append_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    *,
    scale: float,
    tiling: Tiling | None = None,
) -> Tensor:
    tokens, heads, dim = q.shape
    users, max_pages = page_table.shape
    kv_heads, page_size = k_pages.shape[1:3]
    group = heads // kv_heads
    q = q if q.stride(2) == 1 else q.contiguous()
    page_table = page_table.contiguous()
    tiling = tiling or choose_tiling(tokens * group, users, k_pages)
    tiles = triton.cdiv(tokens * group, tiling.block_m) + users - 1
    partial = torch.empty(tiling.splits, tokens, heads, dim, dtype=q.dtype, device=q.device)
    log_totals = torch.empty(tiling.splits, tokens, heads, dtype=torch.float32, device=q.device)
    _kernel[(tiles, kv_heads, tiling.splits)](
        partial, log_totals, q, tiling.operand(k_pages), tiling.operand(v_pages), page_table, query_starts, kv_lengths,
        tokens, users, kv_heads, max_pages, q.stride(0), q.stride(1), scale * LOG2_E,
        GROUP=group, SPLITS=tiling.splits, USERS=triton.next_power_of_2(users),
        PAGE_SIZE=page_size, DIM=dim, BLOCK_M=tiling.block_m, BLOCK_N=tiling.block_n, BLOCK_D=tiling.block_d,
        DESCRIPTORS=tiling.descriptors, PRECISION="ieee",
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    return partial[0] if tiling.splits == 1 else merge_splits(partial, log_totals)


def choose_tiling(rows: int, users: int, k_pages: Tensor) -> Tiling:
    """Tiles as tall as a user's new rows; few users with few new tokens split the context."""
    kv_heads, _, dim = k_pages.shape[1:]
    block_n, descriptors = tile_width(k_pages)
    block_d = triton.next_power_of_2(dim)
    widest = 128 if block_d * k_pages.element_size() <= 256 else 64
    block_m = max(16, min(widest, triton.next_power_of_2(triton.cdiv(rows, users))))
    programs = (triton.cdiv(rows, block_m) + users - 1) * kv_heads
    splits = max(1, min(16, MULTIPROCESSORS // programs))
    return Tiling(block_m, block_n, block_d, splits, 8 if block_m == 128 else 4, 4 if block_m == 16 else 3, descriptors)
