"""staged_attention in Triton.

A tile is some beams of one request, times the query heads of one KV head: the prefix's pages are read once for all of
it. Where a tile sees the whole prefix its beams' own tokens cost no kernel of their own; where the prefix is cut into
parts the merge takes them along.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from xgr_kernels.attention_plan import Plan, Tiling
from xgr_kernels.paged import MULTIPROCESSORS, Suffix, attend, pipelined_tiling, tile_width
from xgr_kernels.work_list import make_plan


def staged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor | None,
    prefix_lengths: Tensor,
    row_starts: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    ancestors: Tensor,
    *,
    scale: float,
    kv_scales: Tensor | None = None,
    out_scales: Tensor | None = None,
    plan: Plan | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    if page_table is None:
        raise ValueError("page_table must be a table for the kernel, which reads pages, not None")
    if plan is None:
        plan = _plan(row_starts, prefix_lengths, q, k_pages, tiling)
    suffix = Suffix(suffix_k, suffix_v, ancestors)
    return attend(
        q, k_pages, v_pages, kv_scales, page_table, prefix_lengths, plan,
        scale=scale, causal=False, suffix=suffix, out_scales=out_scales,
    )  # fmt: skip


def _plan(row_starts: Tensor, prefix_lengths: Tensor, q: Tensor, k_pages: Tensor, tiling: Tiling | None) -> Plan:
    rows, heads, head_dim = q.shape
    kv_heads, page_size = k_pages.shape[1:3]
    return plan(
        row_starts, prefix_lengths, rows=rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        page_size=page_size, dtype=q.dtype, page_dtype=k_pages.dtype, tiling=tiling,
    )  # fmt: skip


def plan(
    row_starts: Tensor,
    prefix_lengths: Tensor,
    *,
    rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    page_dtype: torch.dtype,
    tiling: Tiling | None = None,
) -> Plan:
    requests = len(prefix_lengths)
    if tiling is None:
        rows_of_head = rows * (heads // kv_heads)
        device = row_starts.device
        tiling = choose_tiling(rows_of_head, requests, kv_heads, head_dim, page_size, dtype, page_dtype, device)
    return make_plan(
        row_starts, prefix_lengths, tiling,
        rows=rows, heads=heads, kv_heads=kv_heads, dim=head_dim, dtype=dtype, causal=False,
    )  # fmt: skip


def whole_prefixes(*_: object) -> None:
    """Pages are read where they are."""


def choose_tiling(
    rows: int, requests: int, kv_heads: int, dim: int, page_size: int, dtype: torch.dtype, page_dtype: torch.dtype,
    device: torch.device,
) -> Tiling:  # fmt: skip
    """As many programs as run at once, with the context in parts where there would be fewer; rows: beams × group."""
    pipelined = pipelined_tiling(rows, requests, dim, page_size, dtype, page_dtype, device, splits=16)
    if pipelined is not None:
        return pipelined
    block_d = triton.next_power_of_2(dim)
    block_n, descriptors = tile_width(page_size, dim, dtype)
    if dtype.itemsize > 2:
        return Tiling(16, block_n, block_d, 4, 2, 2 * MULTIPROCESSORS, 8, descriptors)
    block_m = max(16, min(64, triton.next_power_of_2(triton.cdiv(rows, requests))))
    return Tiling(block_m, block_n, block_d, 4, 3, 2 * MULTIPROCESSORS, 16, descriptors)
