"""Attention over pages on Hopper's matrix units, explicitly pipelined: paged.py's attend_kernel for 16-bit operands.

A program is one warpgroup with 64 rows; two share a multiprocessor, and while one takes its softmax the matrix units
work for the other. A step takes two tiles of keys at once, so that the sums are rescaled once for both.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@gluon.jit
def _pages_from(table, n, stop, PAGE_SIZE: gl.constexpr, TILE: gl.constexpr):
    """The pages of the two tiles from key n on; any page will do for one that is not there."""
    first = gl.load(table + n // PAGE_SIZE, mask=n < stop, other=0)
    return first, gl.load(table + (n + TILE) // PAGE_SIZE, mask=n + TILE < stop, other=0)


@gluon.jit
def _fetch(
    pages, first, second, n, kv_head, kv_heads, ready, ring, load, there, PAGE_SIZE: gl.constexpr, TILE: gl.constexpr
):
    """Start the copy of the two tiles from key n on; `load` numbers the copies into the ring of three pairs."""
    slot = load % 3
    barrier = ready.index(slot)
    bytes_: gl.constexpr = 2 * pages.block_type.nbytes
    mbarrier.expect(barrier, bytes_, pred=there)
    row = (first * kv_heads + kv_head) * PAGE_SIZE + n % PAGE_SIZE
    tma.async_copy_global_to_shared(pages, [row, 0], barrier, ring.index(slot * 2), pred=there)
    row = (second * kv_heads + kv_head) * PAGE_SIZE + (n + TILE) % PAGE_SIZE
    tma.async_copy_global_to_shared(pages, [row, 0], barrier, ring.index(slot * 2 + 1), pred=there)


@gluon.jit
def _rows(first_row, last_row, tile, kv_head, GROUP: gl.constexpr, ROWS: gl.constexpr, layout: gl.constexpr):
    m = tile * ROWS + gl.arange(0, ROWS, layout=layout)
    return first_row + m // GROUP, kv_head * GROUP + m % GROUP, first_row + m // GROUP < last_row, m


@gluon.jit
def _load_q(
    q, first_row, last_row, tile, kv_head, q_stride, head_stride,
    GROUP: gl.constexpr, ROWS: gl.constexpr, DIM: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    row, head, real, _m = _rows(first_row, last_row, tile, kv_head, GROUP, ROWS, gl.SliceLayout(1, layout))
    d = gl.arange(0, DIM, layout=gl.SliceLayout(0, layout))
    place = (row.to(gl.int64) * q_stride + head * head_stride)[:, None] + d[None, :]
    return gl.load(q + place, mask=real[:, None] & (d < DIM)[None, :], other=0.0)


@gluon.jit
def _suffix(
    q, wanted, first_row, last_row, tile, kv_head, suffix_k, suffix_v, ancestors,
    q_stride, head_stride, step_stride, suffix_stride, ancestors_stride, qk_scale,
    GROUP: gl.constexpr, STEPS: gl.constexpr, ROWS: gl.constexpr, DIM: gl.constexpr,
    blocked: gl.constexpr, acc_layout: gl.constexpr, row_layout: gl.constexpr,
):  # fmt: skip
    """The rows over their beams' own tokens: the online softmax's state, in the layouts of the main loop."""
    peak = gl.full([ROWS], -1e30, gl.float32, layout=row_layout)
    total = gl.zeros([ROWS], gl.float32, layout=row_layout)
    acc = gl.zeros([ROWS, DIM], gl.float32, layout=acc_layout)
    keys_at: gl.constexpr = gl.SliceLayout(1, blocked)
    values_at: gl.constexpr = gl.SliceLayout(1, acc_layout)
    row, _head, real, _m = _rows(first_row, last_row, tile, kv_head, GROUP, ROWS, keys_at)
    d = gl.arange(0, DIM, layout=gl.SliceLayout(0, blocked))
    value_row, _head, value_real, _m = _rows(first_row, last_row, tile, kv_head, GROUP, ROWS, values_at)
    value_d = gl.arange(0, DIM, layout=gl.SliceLayout(0, acc_layout))
    real, value_real = real & wanted, value_real & wanted
    if STEPS > 0:
        tile_q = _load_q(q, first_row, last_row, tile, kv_head, q_stride, head_stride, GROUP, ROWS, DIM, blocked)
    for step in gl.static_range(STEPS):
        ancestor = gl.load(ancestors + row.to(gl.int64) * ancestors_stride + step, mask=real, other=0).to(gl.int64)
        place = (step * step_stride + ancestor * suffix_stride + kv_head * DIM)[:, None] + d[None, :]
        key = gl.load(suffix_k + place, mask=real[:, None] & (d < DIM)[None, :], other=0.0)
        score = gl.convert_layout(gl.sum(tile_q.to(gl.float32) * key.to(gl.float32), 1) * qk_scale, row_layout)
        new_peak = gl.maximum(peak, score)
        shrink, weight = gl.exp2(peak - new_peak), gl.exp2(score - new_peak)
        ancestor = gl.load(ancestors + value_row.to(gl.int64) * ancestors_stride + step, mask=value_real, other=0)
        place = (step * step_stride + ancestor.to(gl.int64) * suffix_stride + kv_head * DIM)[:, None]
        place += value_d[None, :]
        value = gl.load(suffix_v + place, mask=value_real[:, None] & (value_d < DIM)[None, :], other=0.0)
        acc = acc * gl.convert_layout(shrink, values_at)[:, None]
        acc += gl.convert_layout(weight, values_at)[:, None] * value.to(gl.float32)
        total = total * shrink + weight
        peak = new_peak
    return gl.where(wanted, peak, -1e30), gl.where(wanted, total, 0.0), acc


@gluon.jit
def _zero_beyond(values, n, stop, TILE: gl.constexpr, layout: gl.constexpr):
    """Unwritten memory may hold NaN, and 0 · NaN is NaN."""
    tile = values.load(layout)
    real = n + gl.arange(0, TILE, layout=gl.SliceLayout(1, layout)) < stop
    values.store(gl.where(real[:, None], tile, gl.zeros_like(tile)))


@gluon.jit
def _step(
    j, steps, first, stop, k_pages, v_pages, table, kv_head, kv_heads, q, ring, ready, acc, peak, total, page, page_too,
    limits, qk_scale,
    PAGE_SIZE: gl.constexpr, TILE: gl.constexpr, ROWS: gl.constexpr, score_layout: gl.constexpr,
    weight_layout: gl.constexpr, acc_row_layout: gl.constexpr, values_layout: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Two tiles of keys and values. In flight before and after: the product with the last values."""
    n = first + j * 2 * TILE
    nothing = gl.zeros([ROWS, TILE], gl.float32, layout=score_layout)
    slot = 2 * j % 3
    mbarrier.wait(ready.index(slot), 2 * j // 3 & 1)
    left = warpgroup_mma(q, ring.index(slot * 2).permute((1, 0)), nothing, use_acc=False, is_async=True)
    right = warpgroup_mma(q, ring.index(slot * 2 + 1).permute((1, 0)), nothing, use_acc=False, is_async=True)
    acc, left, right = warpgroup_mma_wait(0, deps=(acc, left, right))
    # These keys and the values before them are done with: their slots take what comes next.
    gl.thread_barrier()
    _fetch(
        k_pages, page, page_too, n + 2 * TILE, kv_head, kv_heads, ready, ring, 2 * j + 2,
        (j > 0) & (j + 1 < steps), PAGE_SIZE, TILE,
    )  # fmt: skip
    _fetch(
        v_pages, page, page_too, n + 2 * TILE, kv_head, kv_heads, ready, ring, 2 * j + 3, j + 1 < steps,
        PAGE_SIZE, TILE,
    )  # fmt: skip
    page, page_too = _pages_from(table, n + 4 * TILE, stop, PAGE_SIZE, TILE)
    if MASKED:
        at = n + gl.arange(0, TILE, layout=gl.SliceLayout(0, score_layout))
        left = gl.where(at[None, :] >= limits[:, None], float("-inf"), left)
        right = gl.where(at[None, :] + TILE >= limits[:, None], float("-inf"), right)
    new_peak = gl.maximum(peak, gl.max(gl.maximum(left, right), 1) * qk_scale)
    left = gl.exp2(left * qk_scale - new_peak[:, None])
    right = gl.exp2(right * qk_scale - new_peak[:, None])
    shrink = gl.exp2(peak - new_peak)
    total = total * shrink + gl.sum(left + right, 1)
    acc = acc * gl.convert_layout(shrink, acc_row_layout)[:, None]
    left = gl.convert_layout(left.to(q.dtype), weight_layout)
    right = gl.convert_layout(right.to(q.dtype), weight_layout)
    slot = (2 * j + 1) % 3
    mbarrier.wait(ready.index(slot), (2 * j + 1) // 3 & 1)
    if MASKED:  # noqa: SIM102 - decided when compiled
        if n + 2 * TILE > stop:
            _zero_beyond(ring.index(slot * 2), n, stop, TILE, values_layout)
            _zero_beyond(ring.index(slot * 2 + 1), n + TILE, stop, TILE, values_layout)
            fence_async_shared()
            gl.thread_barrier()
    acc = warpgroup_mma(left, ring.index(slot * 2), acc, is_async=True)
    acc = warpgroup_mma(right, ring.index(slot * 2 + 1), acc, is_async=True)
    return acc, new_peak, total, page, page_too


@gluon.jit
def attend_kernel(
    out, partial, log_totals, items, q, k_pages, v_pages, page_table, lengths, suffix_k, suffix_v, ancestors,
    kv_heads, table_stride, q_stride, head_stride, step_stride, suffix_stride, ancestors_stride, qk_scale,
    GROUP: gl.constexpr, STEPS: gl.constexpr, CAUSAL: gl.constexpr, PAGE_SIZE: gl.constexpr, DIM: gl.constexpr,
    ROWS: gl.constexpr, TILE: gl.constexpr, PDL: gl.constexpr, SETTLED: gl.constexpr,
):  # fmt: skip
    """As attend_kernel of paged.py. Beams' prefixes were complete before the kernels that this launch depends on, so
    their copies begin before it waits; of a forward's new tokens (CAUSAL) keys and values were just written."""
    if PDL and not SETTLED:
        gdc_wait()
        gdc_launch_dependents()
    dtype: gl.constexpr = k_pages.dtype
    warps: gl.constexpr = gl.num_warps()
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, TILE, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, DIM, 16])
    q_layout: gl.constexpr = gl.DotOperandLayout(0, score_layout, 2)
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    acc_row_layout: gl.constexpr = gl.SliceLayout(1, acc_layout)
    across: gl.constexpr = DIM // 8
    blocked: gl.constexpr = gl.BlockedLayout([1, 8], [32 // across, across], [warps, 1], [1, 0])

    item, kv_head = gl.program_id(0) // kv_heads, gl.program_id(0) % kv_heads
    record = items + item * 8
    first_row, last_row, tile = gl.load(record), gl.load(record + 1), gl.load(record + 2)
    request, first, stop = gl.load(record + 3), gl.load(record + 4), gl.load(record + 5)
    parts = gl.load(record + 6)
    if request >= 0:
        ring = gl.allocate_shared_memory(dtype, [6, TILE, DIM], k_pages.layout)
        ready = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
        for slot in gl.static_range(3):
            mbarrier.init(ready.index(slot), count=1)
        gl.thread_barrier()
        table = page_table + request.to(gl.int64) * table_stride
        steps = (stop - first + 2 * TILE - 1) // (2 * TILE)
        page, page_too = _pages_from(table, first, stop, PAGE_SIZE, TILE)
        if PDL and SETTLED and CAUSAL:
            gdc_wait()
            gdc_launch_dependents()
        _fetch(k_pages, page, page_too, first, kv_head, kv_heads, ready, ring, 0, steps > 0, PAGE_SIZE, TILE)
        _fetch(v_pages, page, page_too, first, kv_head, kv_heads, ready, ring, 1, steps > 0, PAGE_SIZE, TILE)
        upcoming = first + 2 * TILE
        page, page_too = _pages_from(table, upcoming, stop, PAGE_SIZE, TILE)
        _fetch(k_pages, page, page_too, upcoming, kv_head, kv_heads, ready, ring, 2, steps > 1, PAGE_SIZE, TILE)
        if PDL and SETTLED and not CAUSAL:
            gdc_wait()
            gdc_launch_dependents()
        operand = _load_q(q, first_row, last_row, tile, kv_head, q_stride, head_stride, GROUP, ROWS, DIM, q_layout)

        # Without a branch, around which the assembler would copy the sums and so let no product run on: with parts the
        # rows of the suffix count as missing.
        peak, total, acc = _suffix(
            q, parts == 1, first_row, last_row, tile, kv_head, suffix_k, suffix_v, ancestors,
            q_stride, head_stride, step_stride, suffix_stride, ancestors_stride, qk_scale,
            GROUP, STEPS, ROWS, DIM, blocked, acc_layout, row_layout,
        )  # fmt: skip
        limits = gl.zeros([ROWS], gl.int32, layout=row_layout) + stop
        seen_by_all = stop
        if CAUSAL:
            prefix = gl.load(lengths + request) - (last_row - first_row)
            _row, _head, _real, m = _rows(first_row, last_row, tile, kv_head, GROUP, ROWS, row_layout)
            limits = gl.minimum(prefix + m // GROUP + 1, stop)
            seen_by_all = gl.minimum(prefix + tile * ROWS // GROUP + 1, stop)
        whole = gl.maximum(seen_by_all - first, 0) // (2 * TILE)

        acc = warpgroup_mma_init(acc)
        for j in range(whole):
            acc, peak, total, page, page_too = _step(
                j, steps, first, stop, k_pages, v_pages, table, kv_head, kv_heads, operand, ring, ready, acc, peak,
                total, page, page_too, limits, qk_scale,
                PAGE_SIZE, TILE, ROWS, score_layout, weight_layout, acc_row_layout, blocked, False,
            )  # fmt: skip
        for j in range(whole, steps):
            acc, peak, total, page, page_too = _step(
                j, steps, first, stop, k_pages, v_pages, table, kv_head, kv_heads, operand, ring, ready, acc, peak,
                total, page, page_too, limits, qk_scale,
                PAGE_SIZE, TILE, ROWS, score_layout, weight_layout, acc_row_layout, blocked, True,
            )  # fmt: skip
        acc = warpgroup_mma_wait(0, deps=(acc,))

        acc = acc / gl.convert_layout(gl.where(total > 0, total, 1.0), acc_row_layout)[:, None]
        result = gl.convert_layout(acc.to(out.dtype.element_ty), blocked)
        row, head, real, _m = _rows(first_row, last_row, tile, kv_head, GROUP, ROWS, gl.SliceLayout(1, blocked))
        d = gl.arange(0, DIM, layout=gl.SliceLayout(0, blocked))
        inside = real[:, None] & (d < DIM)[None, :]
        if parts == 1:
            at = row.to(gl.int64) * kv_heads * GROUP + head
            gl.store(out + at[:, None] * DIM + d[None, :], result, mask=inside)
        else:
            base = (item * kv_heads + kv_head).to(gl.int64) * ROWS
            at = base + gl.arange(0, ROWS, layout=gl.SliceLayout(1, blocked))
            gl.store(partial + at[:, None] * DIM + d[None, :], result, mask=inside)
            log_total = gl.where(total > 0, peak + gl.log2(total), float("-inf"))
            gl.store(log_totals + base + gl.arange(0, ROWS, layout=row_layout), log_total)
    elif PDL and SETTLED:
        gdc_wait()


def pages_operand(pages: Tensor, tile: int) -> TensorDescriptor:
    """Pages [pages, kv_heads, page_size, dim] as attend_kernel takes them, fetched `tile` keys at a time."""
    block = [tile, pages.shape[3]]
    return TensorDescriptor.from_tensor(pages.view(-1, pages.shape[3]), block, _shared_layout(*block, pages.dtype))


@functools.cache
def _shared_layout(rows: int, dim: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    kind = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([rows, dim], kind)
