"""append_attention in plain torch, computed in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from xgr_kernels.fp8 import quantise_heads
from xgr_kernels.ragged import counts_of, gather_pages, padded_index, size_classes
from xgr_kernels.scales import in_float32


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
    plan: None = None,
) -> Tensor:
    if out_scales is not None:
        users = (page_table, query_starts, kv_lengths)
        out = append_attention(in_float32(q), k_pages, v_pages, *users, scale=scale, kv_scales=kv_scales)
        return quantise_heads(out, out_scales)
    out = torch.empty_like(q)
    all_counts, all_lengths = counts_of(query_starts.tolist()), kv_lengths.tolist()
    for users in size_classes(all_counts, all_lengths):
        counts, lengths = [all_counts[i] for i in users], [all_lengths[i] for i in users]
        if not max(counts):
            continue
        part = torch.tensor(users, device=q.device)
        starts = query_starts.index_select(0, part)
        index, real = padded_index(starts, query_starts.index_select(0, part + 1) - starts)
        keys, values = gather_pages(k_pages, v_pages, kv_scales, page_table.index_select(0, part), lengths)
        attended = _attend(in_float32(q[index]), keys, values, counts, lengths, scale)
        out[index[real]] = attended[real].to(out.dtype)
    return out


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, counts: Sequence[int], lengths: Sequence[int], scale: float
) -> Tensor:
    """q: [users, new, heads, dim]; keys, values: [users, kv_heads, longest, dim]; returns q's shape."""
    users, new, heads, dim = q.shape
    kv_heads, longest = keys.shape[1:3]
    if counts == lengths:  # no prefix anywhere: plain causal attention skips half of the work
        out = scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, is_causal=True, scale=scale, enable_gqa=heads != kv_heads
        )
        return out.transpose(1, 2)
    # The heads that share a KV head become more rows of one product, so that keys are not repeated.
    rows = q.view(users, new, kv_heads, -1, dim).permute(0, 2, 3, 1, 4).reshape(users, kv_heads, -1, dim)
    before = torch.tensor([length - count for length, count in zip(lengths, counts, strict=True)], device=q.device)
    last_seen = before[:, None] + torch.arange(new, device=q.device)
    seen = torch.arange(longest, device=q.device) <= last_seen[:, :, None]  # [users, new, longest]
    mask = seen[:, None].expand(-1, heads // kv_heads, -1, -1).reshape(users, 1, -1, longest)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return out.view(users, kv_heads, -1, new, dim).permute(0, 3, 1, 2, 4).reshape(q.shape)


def plan(*_: object, **__: object) -> None:
    """Nothing to plan: lengths are read on the host."""
