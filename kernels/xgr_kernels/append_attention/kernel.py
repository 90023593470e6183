"""append_attention in Triton.

A tile is some new tokens of one user, times the query heads of one KV head. Few users: the context goes in parts, which
a second kernel merges. The tiles that see the most start first.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from xgr_kernels.attention_plan import Plan, Tiling
from xgr_kernels.paged import MULTIPROCESSORS, attend, pipelined_tiling, tile_width
from xgr_kernels.work_list import make_plan

ENOUGH_TILES = 180
"""Of 64 rows: as many fill the card without cutting contexts."""


def append_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    *,
    scale: float,
    kv_scales: Tensor | None = None,
    out_scales: Tensor | None = None,
    plan: Plan | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    if plan is None:
        plan = _plan(query_starts, kv_lengths, q, k_pages, tiling)
    return attend(
        q, k_pages, v_pages, kv_scales, page_table, kv_lengths, plan, scale=scale, causal=True, out_scales=out_scales
    )  # fmt: skip


def _plan(query_starts: Tensor, kv_lengths: Tensor, q: Tensor, k_pages: Tensor, tiling: Tiling | None) -> Plan:
    tokens, heads, head_dim = q.shape
    kv_heads, page_size = k_pages.shape[1:3]
    return plan(
        query_starts, kv_lengths, tokens=tokens, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        page_size=page_size, dtype=q.dtype, page_dtype=k_pages.dtype, tiling=tiling,
    )  # fmt: skip


def plan(
    query_starts: Tensor,
    kv_lengths: Tensor,
    *,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    page_dtype: torch.dtype,
    tiling: Tiling | None = None,
) -> Plan:
    users = len(kv_lengths)
    if tiling is None:
        rows_of_head = tokens * (heads // kv_heads)
        device = query_starts.device
        tiling = choose_tiling(rows_of_head, users, kv_heads, head_dim, page_size, dtype, page_dtype, device)
    return make_plan(
        query_starts, kv_lengths, tiling,
        rows=tokens, heads=heads, kv_heads=kv_heads, dim=head_dim, dtype=dtype, causal=True,
    )  # fmt: skip


def choose_tiling(
    rows: int, users: int, kv_heads: int, dim: int, page_size: int, dtype: torch.dtype, page_dtype: torch.dtype,
    device: torch.device,
) -> Tiling:  # fmt: skip
    """Tiles as tall as a user's new rows (rows: tokens × group); the context in parts where tiles are few."""
    splits = 1 if triton.cdiv(rows, 64) * kv_heads > ENOUGH_TILES else 16
    pipelined = pipelined_tiling(rows, users, dim, page_size, dtype, page_dtype, device, splits=splits)
    if pipelined is not None:
        return pipelined
    block_d = triton.next_power_of_2(dim)
    block_n, descriptors = tile_width(page_size, dim, dtype)
    if dtype.itemsize > 2:
        return Tiling(16, block_n, block_d, 4, 2, 2 * MULTIPROCESSORS, 8, descriptors)
    block_m = max(16, min(64, triton.next_power_of_2(triton.cdiv(rows, users))))
    programs = triton.cdiv(rows, block_m) * kv_heads
    if block_m > 16:
        splits = 1 if programs > ENOUGH_TILES else 16
        return Tiling(block_m, block_n, block_d, 4, 3, 2 * MULTIPROCESSORS, splits, descriptors)
    if programs < MULTIPROCESSORS:
        return Tiling(16, block_n, block_d, 4, 4, MULTIPROCESSORS, 16, descriptors)
    # Memory is the limit: 64 users' 3 tokens × 28 layers in 1.91 ms; with 64 keys to a tile 2.02.
    return Tiling(16, min(32, block_n), block_d, 2, 4, 3 * MULTIPROCESSORS, 16, descriptors)
