"""staged_attention in Triton.

A tile is some beams of one request, times the query heads of one KV head: the prefix's pages are read once for all of
it. The first split of the context starts from the beams' own tokens, so that a suffix costs no kernel of its own; with
more than one split a second kernel merges them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.paged import LOG2_E, MULTIPROCESSORS, Tiling, attend_pages, locate_tile, merge_splits, tile_width


@triton.jit
def _kernel(
    out, log_totals, q, k_pages, v_pages, page_table, prefix_lengths, row_starts, suffix_k, suffix_v, ancestors,
    rows, requests, kv_heads, max_pages, q_stride, step_stride, row_stride, ancestors_stride, qk_scale,
    GROUP: tl.constexpr, STEPS: tl.constexpr, SPLITS: tl.constexpr, REQUESTS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_head, split = tl.program_id(1), tl.program_id(2)
    request, tile, exists = locate_tile(row_starts, requests, tl.program_id(0), GROUP, BLOCK_M, REQUESTS)
    if exists:
        first_row, last_row = tl.load(row_starts + request), tl.load(row_starts + request + 1)
        m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row = first_row + m // GROUP
        head = kv_head * GROUP + m % GROUP
        d = tl.arange(0, BLOCK_D)
        real = row < last_row
        inside = real[:, None] & (d < DIM)[None, :]
        tile_q = tl.load(q + row[:, None] * q_stride + head[:, None] * DIM + d[None, :], mask=inside, other=0.0)

        peak = tl.full([BLOCK_M], -1e30, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if split == 0:
            for step in tl.static_range(STEPS):
                ancestor = tl.load(ancestors + row * ancestors_stride + step, mask=real, other=0).to(tl.int64)
                place = (step * step_stride + ancestor * row_stride + kv_head * DIM)[:, None] + d[None, :]
                key = tl.load(suffix_k + place, mask=inside, other=0.0)
                score = tl.sum(tile_q.to(tl.float32) * key.to(tl.float32), 1) * qk_scale
                new_peak = tl.maximum(peak, score)
                shrink, weight = tl.exp2(peak - new_peak), tl.exp2(score - new_peak)
                value = tl.load(suffix_v + place, mask=inside, other=0.0).to(tl.float32)
                acc = acc * shrink[:, None] + weight[:, None] * value
                total = total * shrink + weight
                peak = new_peak

        length = tl.load(prefix_lengths + request)
        chunk = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N
        first = tl.minimum(split * chunk, length)
        stop = tl.minimum(first + chunk, length)
        whole = first + (stop - first) // BLOCK_N * BLOCK_N
        limits = tl.zeros([BLOCK_M], tl.int32) + length
        peak, total, acc = attend_pages(
            tile_q, peak, total, acc, k_pages, v_pages, page_table + request * max_pages, first, whole, stop, limits,
            kv_head, kv_heads, qk_scale, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DESCRIPTORS, PRECISION,
        )  # fmt: skip
        at = (split * rows + row).to(tl.int64) * kv_heads * GROUP + head
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + at[:, None] * DIM + d[None, :], result.to(out.dtype.element_ty), mask=inside)
        if SPLITS > 1:
            tl.store(log_totals + at, tl.where(total > 0, peak + tl.log2(total), float("-inf")), mask=real)


def staged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    row_starts: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    ancestors: Tensor,
    *,
    scale: float,
    tiling: Tiling | None = None,
) -> Tensor:
    rows, heads, dim = q.shape
    requests, max_pages = page_table.shape
    kv_heads, page_size = k_pages.shape[1:3]
    group = heads // kv_heads
    q, page_table, ancestors = _dense(q, 2), _dense(page_table, 2), _dense(ancestors, 1)
    suffix_k, suffix_v = _dense(suffix_k, 2), _dense(suffix_v, 2)
    tiling = tiling or choose_tiling(rows * group, requests, k_pages)
    tiles = triton.cdiv(rows * group, tiling.block_m) + requests - 1
    partial = torch.empty(tiling.splits, rows, heads, dim, dtype=q.dtype, device=q.device)
    log_totals = torch.empty(tiling.splits, rows, heads, dtype=torch.float32, device=q.device)
    _kernel[(tiles, kv_heads, tiling.splits)](
        partial, log_totals, q, tiling.operand(k_pages), tiling.operand(v_pages), page_table, prefix_lengths,
        row_starts, suffix_k, suffix_v, ancestors, rows, requests, kv_heads, max_pages,
        q.stride(0), suffix_k.stride(0), suffix_k.stride(1), ancestors.stride(0), scale * LOG2_E,
        GROUP=group, STEPS=ancestors.shape[1], SPLITS=tiling.splits, REQUESTS=triton.next_power_of_2(requests),
        PAGE_SIZE=page_size, DIM=dim, BLOCK_M=tiling.block_m, BLOCK_N=tiling.block_n, BLOCK_D=tiling.block_d,
        DESCRIPTORS=tiling.descriptors, PRECISION="ieee",
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    return partial[0] if tiling.splits == 1 else merge_splits(partial, log_totals)


def choose_tiling(rows: int, requests: int, k_pages: Tensor) -> Tiling:
    """Large tiles where they fill the card, else small ones and the context split."""
    kv_heads, _, dim = k_pages.shape[1:]
    block_n, descriptors = tile_width(k_pages)
    block_d = triton.next_power_of_2(dim)
    large = rows * kv_heads >= 128 * MULTIPROCESSORS and block_d * k_pages.element_size() <= 256
    block_m = 128 if large else max(16, min(64, triton.next_power_of_2(triton.cdiv(rows, requests))))
    programs = (triton.cdiv(rows, block_m) + requests - 1) * kv_heads
    splits = 1 if large else max(1, min(16, triton.cdiv(2 * MULTIPROCESSORS - 8, programs)))
    return Tiling(block_m, block_n, block_d, splits, 8 if large else 4, 3, descriptors)


def _dense(tensor: Tensor, last: int) -> Tensor:
    """The tensor, copied if its last dimensions are not contiguous."""
    expected = 1
    for dimension in range(1, last + 1):
        if tensor.shape[-dimension] > 1 and tensor.stride(-dimension) != expected:
            return tensor.contiguous()
        expected *= tensor.shape[-dimension]
    return tensor
