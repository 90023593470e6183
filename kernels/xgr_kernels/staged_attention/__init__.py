"""Attention of beams: over their request's shared prefix and over their own few tokens, merged by log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xgr_kernels.checks import check_heads, check_kv_scales, check_out_scales, check_pages, check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["plan_staged_attention", "staged_attention", "whole_prefixes"]


def staged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor | None,
    prefix_lengths: Tensor,
    row_starts: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    ancestors: Tensor,
    *,
    scale: float,
    kv_scales: Tensor | None = None,
    out_scales: Tensor | None = None,
    plan: Any = None,
) -> Tensor:
    """Each beam attends to its request's prefix, whose pages are read once for all beams, and to its own suffix.

    q: [rows, heads, dim], one row at least, request i owning rows row_starts[i] : row_starts[i + 1].
    k_pages, v_pages: [pages, kv_heads, page_size, dim], page_size a power of two; in FP8, kv_scales [2, kv_heads]
    float32 is what each head's keys, then its values, are multiplied by; page_table: [requests, max_pages], or None for
    `whole_prefixes`, whose page i is all of request i's prefix;
    prefix_lengths: [requests], zero allowed; row_starts: [requests + 1].
    suffix_k, suffix_v: [steps, rows, kv_heads, dim], at least one step; ancestors: [rows, steps]: the token of row r
    at step s lies at suffix[s, ancestors[r, s]], so a beam's keys stay where its ancestor wrote them.
    out_scales: [kv_heads] float32; with them each head's results are divided by its KV head's and are FP8.
    Returns [rows, heads, dim], otherwise in q's dtype. Raises ValueError on arguments that do not fit each other.
    """
    check_shape("q", q, (None, None, None))
    rows, heads, dim = q.shape
    if not rows:
        raise ValueError("q must have at least one row, not 0")
    check_pages(k_pages, v_pages, dim, any_size=page_table is None)
    check_kv_scales(kv_scales, k_pages)
    kv_heads = k_pages.shape[1]
    check_heads(heads, kv_heads)
    check_out_scales(out_scales, kv_heads)
    check_shape("prefix_lengths", prefix_lengths, (None,))
    requests = prefix_lengths.shape[0]
    if page_table is None:
        check_shape("k_pages", k_pages, (requests, kv_heads, None, dim))
    else:
        check_shape("page_table", page_table, (requests, None))
    check_shape("row_starts", row_starts, (requests + 1,))
    check_shape("ancestors", ancestors, (rows, None))
    steps = ancestors.shape[1]
    if steps < 1:
        raise ValueError("ancestors must have at least one step, not 0")
    check_shape("suffix_k", suffix_k, (steps, None, kv_heads, dim))
    check_shape("suffix_v", suffix_v, tuple(suffix_k.shape))
    return implementation("staged_attention", q)(
        q,
        k_pages,
        v_pages,
        page_table,
        prefix_lengths,
        row_starts,
        suffix_k,
        suffix_v,
        ancestors,
        scale=scale,
        kv_scales=kv_scales,
        out_scales=out_scales,
        plan=plan,
    )


def plan_staged_attention(
    row_starts: Tensor,
    prefix_lengths: Tensor,
    *,
    rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    page_dtype: torch.dtype | None = None,
) -> Any:
    """What is the same in all layers of one forward; to be handed to `staged_attention` as it is. On CUDA which program
    does what, computed on the device without a synchronisation.

    row_starts: [requests + 1]; prefix_lengths: [requests]; rows: q's, of which those at or beyond
    row_starts[-1] are padding; dtype: q's; page_dtype: the pages', None for q's.
    """
    check_heads(heads, kv_heads)
    check_shape("row_starts", row_starts, (prefix_lengths.shape[0] + 1,))
    return implementation("staged_attention", row_starts, "plan")(
        row_starts,
        prefix_lengths,
        rows=rows,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        dtype=dtype,
        page_dtype=page_dtype or dtype,
    )


def whole_prefixes(
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    kv_scales: Sequence[Tensor | None],
) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
    """Keys and values of all layers for several calls over the same prefixes, a copy: each [requests, kv_heads,
    longest or more, dim] in float32, to be handed to `staged_attention` without a page table.

    k_pages, v_pages: [layers, pages, kv_heads, page_size, dim]; kv_scales: each layer's, which the copies have been
    multiplied by. None where that would not pay: they would take too much memory, or the implementation reads pages
    where they are (the kernel).
    """
    gathered: tuple[Sequence[Tensor], Sequence[Tensor]] | None = implementation(
        "staged_attention", page_table, "whole_prefixes"
    )(k_pages, v_pages, page_table, prefix_lengths, kv_scales)
    return gathered
