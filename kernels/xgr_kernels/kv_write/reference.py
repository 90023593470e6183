"""kv_write in plain torch, computed in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xgr_kernels.fp8 import quantise
from xgr_kernels.scales import in_float32, inverse_rms, normalised, scaled


@dataclass(frozen=True, slots=True)
class Plan:
    """What every layer of a forward needs to know of its tokens."""

    cos: Tensor
    """[tokens, 1, dim] float32"""
    signed_sin: Tensor
    """[tokens, 1, dim] float32: the first half negated."""
    written: Tensor | None
    """Indices of the tokens to write, None for all of them."""
    slots: Tensor
    """[written tokens] int64"""


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
    plan: Plan | None = None,
) -> Tensor:
    how = plan or _plan(positions, slots, cos_sin)
    dtype = q.dtype
    if hidden is not None or row_scale is not None or column_scale is not None:
        q, k, v = _scaled(q, k, v, hidden, eps, row_scale, column_scale)
    both = _normalised(q, k, q_norm, k_norm, eps)
    q_turned, k = _rotate(both, how).tensor_split((q.shape[1],), dim=1)
    if how.written is not None:
        k, v = k.index_select(0, how.written), v.index_select(0, how.written)
    page_size = k_pages.shape[2]
    if kv_scales is not None:
        k_scale, v_scale = kv_scales.unsqueeze(-1)
        k, v = quantise(in_float32(k), k_scale).view(torch.uint8), quantise(in_float32(v), v_scale).view(torch.uint8)
        k_pages, v_pages = k_pages.view(torch.uint8), v_pages.view(torch.uint8)  # torch copies FP8 in few ways
    for pages, own in ((k_pages, k), (v_pages, v)):
        own = own if own.dtype is pages.dtype else own.to(pages.dtype)
        if page_size == 1:
            pages.squeeze(2).index_copy_(0, how.slots, own)
        else:
            pages[how.slots // page_size, :, how.slots % page_size] = own
    return q_turned if q_turned.dtype is dtype else q_turned.to(dtype)


def plan(positions: Tensor, slots: Tensor, cos_sin: Tensor) -> Plan:
    cos, sin = in_float32(cos_sin.index_select(0, positions)).unsqueeze(1).chunk(2, dim=-1)
    written = None
    if slots.shape[0] and int(slots.min()) < 0:
        written = (slots >= 0).nonzero()[:, 0]
        slots = slots.index_select(0, written)
    return Plan(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1), written, slots)


_plan = plan  # kv_write has an argument of this name


def _scaled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    hidden: Tensor | None,
    eps: float,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
) -> tuple[Tensor, ...]:
    """q, k and v in float32, times all factors given."""
    joined = torch.cat([q, k, v], dim=1)
    flat = scaled(joined.flatten(1), row_scale, column_scale)
    if hidden is not None:
        flat = flat * inverse_rms(hidden, eps)
    return flat.view(joined.shape).split([q.shape[1], k.shape[1], k.shape[1]], dim=1)


def _normalised(q: Tensor, k: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, eps: float) -> Tensor:
    """The heads of both, [tokens, heads + kv_heads, dim] in float32, RMSNorm over the last dimension of those that have
    a weight. In one go: 600 tokens of 4 and 4 heads of 32 take 0.24 ms instead of 0.43."""
    if q_norm is None or k_norm is None:
        heads = [
            in_float32(x) if weight is None else normalised(x, weight, eps) for x, weight in ((q, q_norm), (k, k_norm))
        ]
        return torch.cat(heads, dim=1)
    both = in_float32(torch.cat([q, k], dim=1))
    weights = torch.cat([q_norm.expand(q.shape[1], -1), k_norm.expand(k.shape[1], -1)])
    return both.mul_(inverse_rms(both, eps)).mul_(in_float32(weights))


def _rotate(x: Tensor, how: Plan) -> Tensor:
    """Rotary embedding of [tokens, heads, dim], whose pairs are (i, i + dim / 2)."""
    return (x * how.cos).addcmul_(x.roll(x.shape[-1] // 2, dims=-1), how.signed_sin)
