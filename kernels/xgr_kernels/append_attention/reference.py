"""append_attention in plain torch, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from xgr_kernels.ragged import gather_pages, padded_index, size_classes


def append_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    *,
    scale: float,
    plan: None = None,
) -> Tensor:
    out = torch.empty_like(q)
    new_counts = query_starts.diff()
    for users in size_classes(new_counts, kv_lengths):
        lengths, counts = kv_lengths[users], new_counts[users]
        if int(counts.max()) == 0:
            continue
        index, real = padded_index(query_starts[:-1][users], counts)
        keys, values = gather_pages(k_pages, v_pages, page_table[users], lengths)
        attended = _attend(q[index].float(), keys, values, counts, lengths, scale)
        out[index[real]] = attended[real].to(out.dtype)
    return out


def _attend(q: Tensor, keys: Tensor, values: Tensor, counts: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """q: [users, new, heads, dim]; keys, values: [users, kv_heads, longest, dim]; returns q's shape."""
    users, new, heads, dim = q.shape
    kv_heads, longest = keys.shape[1:3]
    if torch.equal(counts, lengths):  # no prefix anywhere: plain causal attention skips half of the work
        out = scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, is_causal=True, scale=scale, enable_gqa=heads != kv_heads
        )
        return out.transpose(1, 2)
    # The heads that share a KV head become more rows of one product, so that keys are not repeated.
    rows = q.view(users, new, kv_heads, -1, dim).permute(0, 2, 3, 1, 4).reshape(users, kv_heads, -1, dim)
    last_seen = (lengths - counts)[:, None] + torch.arange(new, device=q.device)
    seen = torch.arange(longest, device=q.device) <= last_seen[:, :, None]  # [users, new, longest]
    mask = seen[:, None].expand(-1, heads // kv_heads, -1, -1).reshape(users, 1, -1, longest)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return out.view(users, kv_heads, -1, new, dim).permute(0, 3, 1, 2, 4).reshape(q.shape)


def plan(*_: object, **__: object) -> None:
    """Nothing to plan: lengths are read on the host."""
