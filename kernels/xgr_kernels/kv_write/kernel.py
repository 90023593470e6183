"""kv_write in Triton: one program a token, all of its heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.dependent_launch import dependent_launch


@triton.jit
def _halves(x, heads, DIM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    """The two halves [HEADS, HALF] of one token's heads."""
    head, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (i < DIM // 2)
    first = tl.load(x + head * DIM + i, mask=inside, other=0.0)
    return first, tl.load(x + head * DIM + DIM // 2 + i, mask=inside, other=0.0)


@triton.jit
def _weight(weight, DIM: tl.constexpr, HALF: tl.constexpr):
    """The two halves [HALF] of a norm's weight."""
    i = tl.arange(0, HALF)[None, :]
    first = tl.load(weight + i, mask=i < DIM // 2, other=0.0).to(tl.float32)
    return first, tl.load(weight + DIM // 2 + i, mask=i < DIM // 2, other=0.0).to(tl.float32)


@triton.jit
def _normalised(first, second, weight, weight_too, eps, DIM: tl.constexpr):
    """Each head over both of its halves."""
    power = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / DIM
    factor = tl.rsqrt(power + eps)[:, None]
    return first * (factor * weight), second * (factor * weight_too)


@triton.jit
def _store_halves(target, stride, first, second, heads, DIM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    head, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (i < DIM // 2)
    tl.store(target + head * stride + i, first.to(target.dtype.element_ty), mask=inside)
    tl.store(target + head * stride + DIM // 2 + i, second.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _store_head(
    target, stride, first, second, heads, scales, DIM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr
):
    """`_store_halves` into a page: over each head's scale, within what FP8 has, if there are `scales`."""
    if scales is not None:
        head = tl.arange(0, HEADS)[:, None]
        scale = tl.load(scales + head, mask=head < heads, other=1.0)
        first = tl.minimum(tl.maximum(first / scale, -448.0), 448.0)
        second = tl.minimum(tl.maximum(second / scale, -448.0), 448.0)
    _store_halves(target, stride, first, second, heads, DIM, HEADS, HALF)


@triton.jit
def kv_write_kernel(
    out, q, k, v, positions, slots, cos_sin, k_pages, v_pages, q_norm, k_norm, hidden, row_scale, q_scale, k_scale,
    v_scale, key_scales, value_scales, heads, kv_heads, q_stride, k_stride, v_stride, hidden_size, hidden_stride, eps,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # No kernel writes these: before the wait. And all loads come before the sums, which end with barriers that no load
    # is moved across.
    if q_scale is not None:
        q_by, q_by_too = _halves(q_scale, heads, DIM, HEADS, HALF)
        k_by, k_by_too = _halves(k_scale, kv_heads, DIM, KV_HEADS, HALF)
        v_by, v_by_too = _halves(v_scale, kv_heads, DIM, KV_HEADS, HALF)
    if q_norm is not None:
        q_weight, q_weight_too = _weight(q_norm, DIM, HALF)
    if k_norm is not None:
        k_weight, k_weight_too = _weight(k_norm, DIM, HALF)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, HALF)[None, :]
    q_first, q_second = _halves(q + token * q_stride, heads, DIM, HEADS, HALF)
    k_first, k_second = _halves(k + token * k_stride, kv_heads, DIM, KV_HEADS, HALF)
    v_first, v_second = _halves(v + token * v_stride, kv_heads, DIM, KV_HEADS, HALF)
    slot = tl.load(slots + token)
    angles = cos_sin + tl.load(positions + token) * DIM
    cos = tl.load(angles + i, mask=i < DIM // 2, other=0.0).to(tl.float32)
    sin = tl.load(angles + DIM // 2 + i, mask=i < DIM // 2, other=0.0).to(tl.float32)
    factor = 1.0
    if row_scale is not None:
        factor *= tl.load(row_scale + token)
    if hidden is not None:
        j = tl.arange(0, HIDDEN_BLOCK)
        state = tl.load(hidden + token * hidden_stride + j, mask=j < hidden_size, other=0.0).to(tl.float32)
        factor *= tl.rsqrt(tl.sum(state * state, 0) / hidden_size + eps)
    q_first, q_second = q_first.to(tl.float32) * factor, q_second.to(tl.float32) * factor
    k_first, k_second = k_first.to(tl.float32) * factor, k_second.to(tl.float32) * factor
    v_first, v_second = v_first.to(tl.float32) * factor, v_second.to(tl.float32) * factor
    if q_scale is not None:
        q_first, q_second = q_first * q_by, q_second * q_by_too
        k_first, k_second = k_first * k_by, k_second * k_by_too
        v_first, v_second = v_first * v_by, v_second * v_by_too
    if q_norm is not None:
        q_first, q_second = _normalised(q_first, q_second, q_weight, q_weight_too, eps, DIM)
    target = out + token * heads * DIM
    query, query_too = q_first * cos - q_second * sin, q_second * cos + q_first * sin
    _store_halves(target, DIM, query, query_too, heads, DIM, HEADS, HALF)
    if slot >= 0:
        place = (slot // PAGE_SIZE * kv_heads * PAGE_SIZE + slot % PAGE_SIZE) * DIM
        stride = PAGE_SIZE * DIM
        if k_norm is not None:
            k_first, k_second = _normalised(k_first, k_second, k_weight, k_weight_too, eps, DIM)
        key, key_too = k_first * cos - k_second * sin, k_second * cos + k_first * sin
        _store_head(k_pages + place, stride, key, key_too, kv_heads, key_scales, DIM, KV_HEADS, HALF)
        _store_head(v_pages + place, stride, v_first, v_second, kv_heads, value_scales, DIM, KV_HEADS, HALF)


def kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    positions: Tensor,
    slots: Tensor,
    cos_sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    hidden: Tensor | None = None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    kv_scales: Tensor | None = None,
    plan: None = None,
) -> Tensor:
    tokens, heads, dim = q.shape
    kv_heads, page_size = k_pages.shape[1:3]
    q, k, v = (x if x.stride()[1:] == (dim, 1) else x.contiguous() for x in (q, k, v))
    scales: list[Tensor | None] = [None, None, None]
    if column_scale is not None:
        scales = list(column_scale.split([heads * dim, kv_heads * dim, kv_heads * dim]))
    page_scales = (None, None) if kv_scales is None else kv_scales.unbind()
    hidden_size = 0
    if hidden is not None:
        hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
        hidden_size = hidden.shape[1]
    out = torch.empty(tokens, heads, dim, dtype=q.dtype, device=q.device)
    if tokens:
        pdl = dependent_launch(q)
        kv_write_kernel[(tokens,)](
            out, q, k, v, positions.contiguous(), slots.contiguous(), cos_sin.contiguous(), k_pages, v_pages, q_norm,
            k_norm, hidden, row_scale, *scales, *page_scales, heads, kv_heads, q.stride(0), k.stride(0), v.stride(0),
            hidden_size,
            0 if hidden is None else hidden.stride(0), eps,
            PAGE_SIZE=page_size, DIM=dim, HALF=triton.next_power_of_2(dim // 2),
            HEADS=triton.next_power_of_2(heads), KV_HEADS=triton.next_power_of_2(kv_heads),
            HIDDEN_BLOCK=triton.next_power_of_2(hidden_size) if hidden_size else 0, PDL=pdl, launch_pdl=pdl,
        )  # fmt: skip
    return out


def plan(*_: object) -> None:
    """Nothing to plan: each program reads its token's angles and slot."""
