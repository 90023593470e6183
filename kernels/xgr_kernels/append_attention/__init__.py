"""Attention of a few new tokens of each of many users over their paged prefixes; also a long prefill's."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.attention_plan import Plan
from xgr_kernels.checks import check_heads, check_kv_scales, check_out_scales, check_pages, check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["append_attention", "plan_append_attention"]


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
    plan: Plan | None = None,
) -> Tensor:
    """Each new token attends to its user's tokens up to and with itself.

    q: [tokens, heads, dim], user i's new tokens being q[query_starts[i] : query_starts[i + 1]], its last ones.
    k_pages, v_pages: [pages, kv_heads, page_size, dim], page_size a power of two, with the new tokens written already;
    in FP8, kv_scales [2, kv_heads] float32 is what each head's keys, then its values, are multiplied by.
    page_table: [users, max_pages]; query_starts: [users + 1]; kv_lengths: [users], all tokens, the new ones too.
    out_scales: [kv_heads] float32; with them each head's results are divided by its KV head's and are FP8.
    Returns [tokens, heads, dim], otherwise in q's dtype. Raises ValueError on arguments that do not fit each other.
    """
    check_shape("q", q, (None, None, None))
    check_pages(k_pages, v_pages, q.shape[2])
    check_kv_scales(kv_scales, k_pages)
    check_heads(q.shape[1], k_pages.shape[1])
    check_out_scales(out_scales, k_pages.shape[1])
    check_shape("page_table", page_table, (None, None))
    users = page_table.shape[0]
    check_shape("query_starts", query_starts, (users + 1,))
    check_shape("kv_lengths", kv_lengths, (users,))
    return implementation("append_attention", q)(
        q, k_pages, v_pages, page_table, query_starts, kv_lengths,
        scale=scale, kv_scales=kv_scales, out_scales=out_scales, plan=plan,
    )  # fmt: skip


def plan_append_attention(
    query_starts: Tensor,
    kv_lengths: Tensor,
    *,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    page_dtype: torch.dtype | None = None,
) -> Plan | None:
    """Which program does what in every layer of one forward, computed on the device without a synchronisation.

    query_starts: [users + 1]; kv_lengths: [users]; tokens: q's, of which those at or beyond
    query_starts[-1] are padding; dtype: q's; page_dtype: the pages', None for q's. None where the implementation needs
    no plan (the CPU's).
    """
    check_heads(heads, kv_heads)
    check_shape("query_starts", query_starts, (len(kv_lengths) + 1,))
    plan: Plan | None = implementation("append_attention", query_starts, "plan")(
        query_starts,
        kv_lengths,
        tokens=tokens,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        dtype=dtype,
        page_dtype=page_dtype or dtype,
    )
    return plan
