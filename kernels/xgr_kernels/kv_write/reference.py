"""kv_write in plain torch, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.scales import inverse_rms, normalised, scaled


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
) -> Tensor:
    dtype = q.dtype
    if hidden is not None or row_scale is not None or column_scale is not None:
        q, k, v = _scaled(q, k, v, hidden, eps, row_scale, column_scale)
    both = torch.cat([_normalised(q, q_norm, eps), _normalised(k, k_norm, eps)], dim=1)
    q_turned, k = _rotate(both, cos_sin.index_select(0, positions).float()).tensor_split((q.shape[1],), dim=1)
    if slots.shape[0] and int(slots.min()) < 0:
        written = slots >= 0
        k, v, slots = k[written], v[written], slots[written]
    page_size = k_pages.shape[2]
    if page_size == 1:
        k_pages.squeeze(2).index_copy_(0, slots, k.to(k_pages.dtype))
        v_pages.squeeze(2).index_copy_(0, slots, v.to(v_pages.dtype))
    else:
        page, offset = slots // page_size, slots % page_size
        k_pages[page, :, offset] = k.to(k_pages.dtype)
        v_pages[page, :, offset] = v.to(v_pages.dtype)
    return q_turned.to(dtype)


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


def _normalised(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension, where there is a weight."""
    return x.float() if weight is None else normalised(x, weight, eps)


def _rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotary embedding of [tokens, heads, dim], whose pairs are (i, i + dim / 2), by cos_sin [tokens, dim]."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    cos, signed_sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, dims=-1), signed_sin)
