"""What the attention kernels share: attention over pages by a work list, and the merge of contexts cut into parts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from xgr_kernels import cuda_cpp, paged_hopper
from xgr_kernels.attention_plan import Plan, Tiling
from xgr_kernels.dependent_launch import dependent_launch
from xgr_kernels.fp8 import FP8

LOG2_E = 1.4426950408889634
MULTIPROCESSORS = 132
"""Of an H100 or H200; it decides only into how many parts contexts go."""
MERGE_ROWS, MERGE_PARTS = 4, 4

gdc_wait = tl.extra.cuda.gdc_wait
gdc_launch_dependents = tl.extra.cuda.gdc_launch_dependents


@triton.jit
def row_of(items, item, kv_head, block, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr):
    """Rows block · ROWS onwards of an item's tile: their index in q, head, whether they exist, and their number in
    the tile's request, each [ROWS]."""
    record = items + item * 8
    first_row, last_row, tile = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    m = tile * BLOCK_M + block * ROWS + tl.arange(0, ROWS)
    row = first_row + m // GROUP
    return row, kv_head * GROUP + m % GROUP, row < last_row, m


@triton.jit
def attend_suffix(
    q, row, real, inside, kv_head, d, suffix_k, suffix_v, ancestors,
    step_stride, suffix_stride, ancestors_stride, qk_scale,
    STEPS: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Each row of q [ROWS, BLOCK_D] over its beam's own tokens: the online softmax's state, in base 2."""
    peak = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for step in tl.static_range(STEPS):
        ancestor = tl.load(ancestors + row.to(tl.int64) * ancestors_stride + step, mask=real, other=0).to(tl.int64)
        place = (step * step_stride + ancestor * suffix_stride + kv_head * DIM)[:, None] + d[None, :]
        key = tl.load(suffix_k + place, mask=inside, other=0.0)
        value = tl.load(suffix_v + place, mask=inside, other=0.0)
        score = tl.sum(q.to(tl.float32) * key.to(tl.float32), 1) * qk_scale
        new_peak = tl.maximum(peak, score)
        shrink, weight = tl.exp2(peak - new_peak), tl.exp2(score - new_peak)
        acc = acc * shrink[:, None] + weight[:, None] * value.to(tl.float32)
        total = total * shrink + weight
        peak = new_peak
    return peak, total, acc


@triton.jit
def _load_tile(
    pages, table, page, first, stop, kv_head, kv_heads,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr, DESCRIPTORS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Keys or values [BLOCK_N, BLOCK_D] of the tokens from `first` on, as DTYPE; zero from `stop` on unless WHOLE."""
    n = first + tl.arange(0, BLOCK_N)
    if DESCRIPTORS:
        tile = pages.load([(page * kv_heads + kv_head) * PAGE_SIZE + first % PAGE_SIZE, 0]).to(DTYPE)
        if not WHOLE:  # unwritten memory may hold NaN, and 0 · NaN is NaN
            tile = tl.where((n < stop)[:, None], tile, 0.0)
    else:
        d = tl.arange(0, BLOCK_D)
        pages_of = tl.load(table + n // PAGE_SIZE, mask=n < stop, other=0).to(tl.int64)
        row = (pages_of * kv_heads + kv_head) * PAGE_SIZE + n % PAGE_SIZE
        inside = (n < stop)[:, None] & (d < DIM)[None, :]
        tile = tl.load(pages + row[:, None] * DIM + d[None, :], mask=inside, other=0.0).to(DTYPE)
    return tile


@triton.jit
def _absorb(q, keys, values, peak, total, acc, qk_scale, hidden, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One online softmax step; `hidden` says which scores do not count."""
    scores = tl.dot(q, keys.T, input_precision=PRECISION)
    if MASKED:
        scores = tl.where(hidden, float("-inf"), scores)
    new_peak = tl.maximum(peak, tl.max(scores, 1) * qk_scale)
    weights = tl.exp2(scores * qk_scale - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return new_peak, total, acc


@triton.jit
def _store_result(out, out_scales, result, at, inside, kv_head, d, DIM: tl.constexpr):
    if out_scales is not None:
        result = tl.minimum(tl.maximum(result / tl.load(out_scales + kv_head), -448.0), 448.0)
    tl.store(out + at[:, None] * DIM + d[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attend_kernel(
    out, partial, log_totals, items, q, k_pages, v_pages, page_table, lengths, suffix_k, suffix_v, ancestors,
    kv_heads, table_stride, q_stride, head_stride, step_stride, suffix_stride, ancestors_stride, qk_scale, kv_scales,
    out_scales,
    GROUP: tl.constexpr, STEPS: tl.constexpr, CAUSAL: tl.constexpr, PAGE_SIZE: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr, SETTLED: tl.constexpr,
):  # fmt: skip
    """One item of the work list for one KV head: a tile of rows over a part of its request's context.

    Rows see the whole context, or (CAUSAL) being its last tokens, what is not behind them. A tile whose context is
    one part attends to its beams' own STEPS tokens too and goes to `out`, others to `partial` for the merge. The scales
    of FP8 pages never touch them: the keys' goes into that of the scores, the values' into the result.
    """
    # Two numbers of FP8 become float16 in one instruction, bfloat16 by way of float32; either has all of them.
    narrow: tl.constexpr = (kv_scales is not None) and (q.dtype.element_ty == tl.bfloat16)
    DTYPE: tl.constexpr = tl.float16 if narrow else q.dtype.element_ty
    if PDL and not SETTLED:
        gdc_wait()
    item, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    record = items + item * 8
    request, first, stop, parts = tl.load(record + 3), tl.load(record + 4), tl.load(record + 5), tl.load(record + 6)
    table = page_table + tl.maximum(request, 0).to(tl.int64) * table_stride
    page = tl.load(table + first // PAGE_SIZE, mask=(request >= 0) & (first < stop), other=0)
    if PDL:  # what this launch depends on is then complete for the merge kernel too
        if SETTLED:
            gdc_wait()
        gdc_launch_dependents()
    if request >= 0:
        row, head, real, m = row_of(items, item, kv_head, 0, GROUP, BLOCK_M, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        inside = real[:, None] & (d < DIM)[None, :]
        place = row.to(tl.int64)[:, None] * q_stride + (head * head_stride)[:, None] + d[None, :]
        tile_q = tl.load(q + place, mask=inside, other=0.0)

        peak = tl.full([BLOCK_M], -1e30, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if STEPS > 0:  # noqa: SIM102 - decided when compiled
            if parts == 1:
                peak, total, acc = attend_suffix(
                    tile_q, row, real, inside, kv_head, d, suffix_k, suffix_v, ancestors,
                    step_stride, suffix_stride, ancestors_stride, qk_scale, STEPS, DIM, BLOCK_M, BLOCK_D,
                )  # fmt: skip

        if kv_scales is not None:
            value_scale = tl.load(kv_scales + kv_heads + kv_head)
            qk_scale *= tl.load(kv_scales + kv_head)
            acc /= value_scale
        if narrow:  # no query of a model that works is beyond float16's range; if one is, it stays a number
            tile_q = tl.minimum(tl.maximum(tile_q.to(tl.float32), -65504.0), 65504.0).to(tl.float16)

        limits = tl.zeros([BLOCK_M], tl.int32) + stop
        seen_by_all = stop
        if CAUSAL:
            prefix = tl.load(lengths + request) - (tl.load(record + 1) - tl.load(record))
            limits = tl.minimum(prefix + m // GROUP + 1, stop)
            seen_by_all = tl.minimum(prefix + tl.load(record + 2) * BLOCK_M // GROUP + 1, stop)
        whole = first + tl.maximum(seen_by_all - first, 0) // BLOCK_N * BLOCK_N
        for n in range(first, whole, BLOCK_N):
            keys = _load_tile(
                k_pages, table, page, n, whole, kv_head, kv_heads, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DTYPE,
                DESCRIPTORS, True,
            )  # fmt: skip
            values = _load_tile(
                v_pages, table, page, n, whole, kv_head, kv_heads, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DTYPE,
                DESCRIPTORS, True,
            )  # fmt: skip
            page = tl.load(table + (n + BLOCK_N) // PAGE_SIZE, mask=n + BLOCK_N < stop, other=0)
            peak, total, acc = _absorb(tile_q, keys, values, peak, total, acc, qk_scale, None, False, PRECISION)
        for n in tl.range(whole, stop, BLOCK_N, num_stages=1):
            keys = _load_tile(
                k_pages, table, page, n, stop, kv_head, kv_heads, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DTYPE,
                DESCRIPTORS, False,
            )  # fmt: skip
            values = _load_tile(
                v_pages, table, page, n, stop, kv_head, kv_heads, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DTYPE,
                DESCRIPTORS, False,
            )  # fmt: skip
            page = tl.load(table + (n + BLOCK_N) // PAGE_SIZE, mask=n + BLOCK_N < stop, other=0)
            hidden = (n + tl.arange(0, BLOCK_N))[None, :] >= limits[:, None]
            peak, total, acc = _absorb(tile_q, keys, values, peak, total, acc, qk_scale, hidden, True, PRECISION)

        if kv_scales is not None:
            acc *= value_scale
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        if parts == 1:
            at = row.to(tl.int64) * kv_heads * GROUP + head
            _store_result(out, out_scales, result, at, inside, kv_head, d, DIM)
        else:
            at = (item * kv_heads + kv_head).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(partial + at[:, None] * DIM + d[None, :], result.to(partial.dtype.element_ty), mask=inside)
            tl.store(log_totals + at, tl.where(total > 0, peak + tl.log2(total), float("-inf")), mask=real)


@triton.jit
def merge_kernel(
    out, partial, log_totals, items, merges, q, suffix_k, suffix_v, ancestors,
    kv_heads, q_stride, head_stride, step_stride, suffix_stride, ancestors_stride, qk_scale, out_scales,
    GROUP: tl.constexpr, STEPS: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Tiles whose context went in parts: the parts' attention and that over the beams' own tokens, as one.

    The latter needs nothing of the kernel before, so it is done while that one ends.
    """
    if PDL:
        gdc_launch_dependents()
    blocks: tl.constexpr = BLOCK_M // ROWS
    pieces = tl.load(merges) * kv_heads * blocks
    for piece in range(tl.program_id(0), pieces, tl.num_programs(0)):
        kv_head, block = piece // blocks % kv_heads, piece % blocks
        item = tl.load(merges + 1 + piece // blocks // kv_heads)
        if item >= 0:
            row, head, real, _m = row_of(items, item, kv_head, block, GROUP, BLOCK_M, ROWS)
            d = tl.arange(0, BLOCK_D)
            inside = real[:, None] & (d < DIM)[None, :]
            peak = tl.full([ROWS], -1e30, tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
            if STEPS > 0:
                place = row.to(tl.int64)[:, None] * q_stride + (head * head_stride)[:, None] + d[None, :]
                tile_q = tl.load(q + place, mask=inside, other=0.0)
                peak, total, acc = attend_suffix(
                    tile_q, row, real, inside, kv_head, d, suffix_k, suffix_v, ancestors,
                    step_stride, suffix_stride, ancestors_stride, qk_scale, STEPS, DIM, ROWS, BLOCK_D,
                )  # fmt: skip
            parts, distance = tl.load(items + item * 8 + 6), tl.load(items + item * 8 + 7)
            if PDL:
                gdc_wait()
            for first in range(0, parts, PARTS):
                part = first + tl.arange(0, PARTS)
                at = ((item + part * distance) * kv_heads + kv_head).to(tl.int64) * BLOCK_M + block * ROWS
                at = at[:, None] + tl.arange(0, ROWS)[None, :]
                there = (part < parts)[:, None] & real[None, :]
                logs = tl.load(log_totals + at, mask=there, other=float("-inf"))
                values = tl.load(
                    partial + at[:, :, None] * DIM + d[None, None, :],
                    mask=there[:, :, None] & (d < DIM)[None, None, :], other=0.0,
                )  # fmt: skip
                new_peak = tl.maximum(peak, tl.max(logs, 0))
                weights, shrink = tl.exp2(logs - new_peak[None, :]), tl.exp2(peak - new_peak)
                acc = acc * shrink[:, None] + tl.sum(weights[:, :, None] * values.to(tl.float32), 0)
                total = total * shrink + tl.sum(weights, 0)
                peak = new_peak
            at = row.to(tl.int64) * kv_heads * GROUP + head
            _store_result(out, out_scales, acc / total[:, None], at, inside, kv_head, d, DIM)
    if PDL:  # noqa: SIM102 - decided when compiled
        if tl.program_id(0) == 0:
            gdc_wait()  # also where there is nothing to merge: who comes next waits for this kernel alone


@dataclass(frozen=True, slots=True)
class Suffix:
    """The beams' own tokens: keys and values [steps, rows, kv_heads, dim], ancestors [rows, steps]."""

    keys: Tensor
    values: Tensor
    ancestors: Tensor


def attend(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, kv_scales: Tensor | None, page_table: Tensor, lengths: Tensor,
    plan: Plan, *, scale: float, causal: bool, suffix: Suffix | None = None, out_scales: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Do what the plan says; q's rows are beams or new tokens. Returns q's shape, contiguous; FP8 with out_scales."""
    rows, heads, dim = q.shape
    kv_heads, page_size = k_pages.shape[1:3]
    group, tiling = heads // kv_heads, plan.tiling
    if tiling.pipelined and kv_scales is not None:
        raise ValueError(f"plan must be made for pages of {k_pages.dtype} (page_dtype), not of {q.dtype}")
    readable = paged_hopper.readable if tiling.pipelined else contiguous_rows
    q, page_table = readable(q), dense(page_table, 1)
    if suffix is None:
        own, own_strides, steps = (q, q, page_table), (0, 0, 0), 0
    else:
        keys, values = readable(dense(suffix.keys, 2)), readable(dense(suffix.values, 2))
        if keys.stride() != values.stride():
            keys, values = keys.contiguous(), values.contiguous()
        ancestors = dense(suffix.ancestors, 1)
        own, own_strides = (keys, values, ancestors), (keys.stride(0), keys.stride(1), ancestors.stride(0))
        steps = ancestors.shape[1]
    out = torch.empty(rows, heads, dim, dtype=q.dtype if out_scales is None else FP8, device=q.device)
    dependent = dependent_launch(q)
    options = {"launch_pdl": True} if dependent else {}
    if tiling.pipelined:
        paged_hopper.attend(
            out, plan, q, k_pages, v_pages, page_table, lengths, *own, out_scales,
            (steps, page_table.stride(0), q.stride(0), q.stride(1), *own_strides),
            scale=scale * LOG2_E, causal=causal, dependent=dependent,
        )  # fmt: skip
    else:
        attend_kernel[(plan.items.shape[0] * kv_heads,)](
            out, plan.partial, plan.log_totals, plan.items, q, pages_operand(k_pages, tiling),
            pages_operand(v_pages, tiling), page_table, lengths, *own, kv_heads, page_table.stride(0), q.stride(0),
            q.stride(1), *own_strides, scale * LOG2_E, kv_scales, out_scales,
            GROUP=group, STEPS=steps, CAUSAL=causal, PAGE_SIZE=page_size, DIM=dim,
            BLOCK_M=tiling.block_m, BLOCK_N=tiling.block_n, BLOCK_D=tiling.block_d, DESCRIPTORS=tiling.descriptors,
            PRECISION="ieee", PDL=dependent, SETTLED=plan.settled,
            num_warps=tiling.num_warps, num_stages=tiling.num_stages, **options,
        )  # fmt: skip
    plan.settled = True
    if tiling.most_splits > 1:
        pieces = (plan.merges.shape[0] - 1) * kv_heads * (tiling.block_m // MERGE_ROWS)
        merge_kernel[(min(pieces, 16 * MULTIPROCESSORS),)](
            out, plan.partial, plan.log_totals, plan.items, plan.merges, q, *own,
            kv_heads, q.stride(0), q.stride(1), *own_strides, scale * LOG2_E, out_scales,
            GROUP=group, STEPS=steps, DIM=dim, BLOCK_M=tiling.block_m, BLOCK_D=tiling.block_d,
            ROWS=MERGE_ROWS, PARTS=MERGE_PARTS, PDL=dependent, num_warps=1, **options,
        )  # fmt: skip
    return out


def pages_operand(pages: Tensor, tiling: Tiling) -> Any:
    """Pages [pages, kv_heads, page_size, dim] as the kernel takes them."""
    if not tiling.descriptors:
        return pages
    return TensorDescriptor.from_tensor(pages.view(-1, pages.shape[3]), [tiling.block_n, tiling.block_d])


def contiguous_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def dense(tensor: Tensor, last: int) -> Tensor:
    """The tensor, copied if its last dimensions are not contiguous."""
    expected = 1
    for dimension in range(1, last + 1):
        if tensor.shape[-dimension] > 1 and tensor.stride(-dimension) != expected:
            return tensor.contiguous()
        expected *= tensor.shape[-dimension]
    return tensor


def pipelined_tiling(
    rows: int, requests: int, dim: int, page_size: int, dtype: torch.dtype, page_dtype: torch.dtype,
    device: torch.device, *, splits: int,
) -> Tiling | None:  # fmt: skip
    """paged_hopper.cu's, if it is for this: the same 16 bits in queries and pages on Hopper, heads of 128, halves of
    tiles of keys that each lie in one page, and more than half a tile of rows (of q × group) to a request. `splits`:
    parts of a context at most."""
    in_16_bits = dtype == page_dtype and dtype.itemsize == 2
    fits = in_16_bits and dim == paged_hopper.DIM and page_size % paged_hopper.HALF == 0
    if not fits or rows <= requests * paged_hopper.ROWS // 2 or not _runs_on(device):
        return None
    return Tiling(paged_hopper.ROWS, paged_hopper.KEYS, dim, 12, 3, MULTIPROCESSORS, splits, True, pipelined=True)


@functools.cache
def _runs_on(device: torch.device) -> bool:
    on_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return on_hopper and cuda_cpp.available(device)


def tile_width(page_size: int, dim: int, dtype: torch.dtype) -> tuple[int, bool]:
    """Keys to a tile, and whether each lies within one page so that the copy engine can fetch it."""
    block_d = triton.next_power_of_2(dim)
    if dtype.itemsize > 2:  # exact products without matrix units: small tiles compile and run best
        return 16, False
    descriptors = dim == block_d and dim >= 16 and page_size >= 16
    return (min(64, 64 * 128 // block_d, page_size) if descriptors else 32), descriptors
