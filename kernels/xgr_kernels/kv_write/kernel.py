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
def _normalised(
    first, second, heads, factor, column_scale, weight, eps,
    DIM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """The halves times `factor`, each head normalised over both."""
    head, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (i < DIM // 2)
    first, second = first.to(tl.float32), second.to(tl.float32)
    if SCALED:
        first *= factor
        second *= factor
        if column_scale is not None:
            first *= tl.load(column_scale + head * DIM + i, mask=inside, other=0.0)
            second *= tl.load(column_scale + head * DIM + DIM // 2 + i, mask=inside, other=0.0)
    if NORM:
        power = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / DIM
        factor = tl.rsqrt(power + eps)[:, None]
        first *= factor * tl.load(weight + i, mask=i < DIM // 2, other=0.0).to(tl.float32)
        second *= factor * tl.load(weight + DIM // 2 + i, mask=i < DIM // 2, other=0.0).to(tl.float32)
    return first, second


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
def _kernel(
    out, q, k, v, positions, slots, cos_sin, k_pages, v_pages, q_norm, k_norm, hidden, row_scale, q_scale, k_scale,
    v_scale, key_scales, value_scales, heads, kv_heads, q_stride, k_stride, v_stride, hidden_size, hidden_stride, eps,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    SCALED: tl.constexpr = (hidden is not None) or (row_scale is not None) or (q_scale is not None)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, HALF)[None, :]
    # All loads come before the sums, which end with barriers that no load is moved across.
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
    first, second = _normalised(
        q_first, q_second, heads, factor, q_scale, q_norm, eps, DIM, HEADS, HALF, q_norm is not None, SCALED
    )
    target = out + token * heads * DIM
    _store_halves(target, DIM, first * cos - second * sin, second * cos + first * sin, heads, DIM, HEADS, HALF)
    if slot >= 0:
        place = (slot // PAGE_SIZE * kv_heads * PAGE_SIZE + slot % PAGE_SIZE) * DIM
        stride = PAGE_SIZE * DIM
        key, key_too = _normalised(
            k_first, k_second, kv_heads, factor, k_scale, k_norm, eps, DIM, KV_HEADS, HALF, k_norm is not None, SCALED
        )
        turned, turned_too = key * cos - key_too * sin, key_too * cos + key * sin
        _store_head(k_pages + place, stride, turned, turned_too, kv_heads, key_scales, DIM, KV_HEADS, HALF)
        value, value_too = _normalised(
            v_first, v_second, kv_heads, factor, v_scale, k_norm, eps, DIM, KV_HEADS, HALF, False, SCALED
        )
        _store_head(v_pages + place, stride, value, value_too, kv_heads, value_scales, DIM, KV_HEADS, HALF)


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
        _kernel[(tokens,)](
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
