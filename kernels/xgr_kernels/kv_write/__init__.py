"""Normalise and rotate queries and keys, and scatter keys and values into their pages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xgr_kernels.checks import check_heads, check_kv_scales, check_pages, check_scales, check_shape
from xgr_kernels.dispatch import implementation

__all__ = ["kv_write", "plan_kv_write"]


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
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    hidden: Tensor | None = None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    kv_scales: Tensor | None = None,
    plan: Any = None,
) -> Tensor:
    """Write `k` (normalised, rotated) and `v` into the pages IN PLACE; return `q` normalised and rotated.

    q: [tokens, heads, dim]; k, v: [tokens, kv_heads, dim].
    positions: [tokens] int64, rows of cos_sin: [max_positions, dim], first half cosines, second half sines.
    slots: [tokens] int64, page · page_size + offset, each nonnegative one at most once; -1: do not write.
    k_pages, v_pages: [pages, kv_heads, page_size, dim], page_size a power of two; in FP8, kv_scales [2, kv_heads]
    float32 is what each head's keys, then its values, are divided by when written, and what is then beyond FP8's range
    becomes its end.
    q_norm, k_norm: [dim] RMSNorm weights, or None for no norm.
    hidden [tokens, hidden]: q, k and v are the product of these states before their RMSNorm, whose weight is folded
    into the projection (which has no bias): they are multiplied by rsqrt(mean(hidden²) + eps) first.
    row_scale [tokens, 1], column_scale [(heads + 2 · kv_heads) · dim] in the order q, k, v, float32: what they are
    multiplied by first, if they are the product of FP8 factors.
    plan: `plan_kv_write` of the same positions, slots and cos_sin, which spares each layer its part of it.
    Returns [tokens, heads, dim] in q's dtype. Raises ValueError on arguments that do not fit each other, and on a CPU
    IndexError for a position or a slot that is not there.
    """
    check_shape("q", q, (None, None, None))
    tokens, heads, dim = q.shape
    check_shape("k", k, (tokens, None, dim))
    check_shape("v", v, tuple(k.shape))
    check_heads(heads, k.shape[1])
    check_shape("positions", positions, (tokens,))
    check_shape("slots", slots, (tokens,))
    if positions.dtype != torch.int64 or slots.dtype != torch.int64:
        raise ValueError(f"positions and slots must be int64, not {positions.dtype} and {slots.dtype}")
    check_shape("cos_sin", cos_sin, (None, dim))
    check_pages(k_pages, v_pages, dim)
    check_kv_scales(kv_scales, k_pages)
    if k_pages.shape[1] != k.shape[1]:
        raise ValueError(f"k_pages must have the {k.shape[1]} KV heads of k, not {k_pages.shape[1]}")
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            check_shape(name, norm, (dim,))
    if hidden is not None:
        check_shape("hidden", hidden, (tokens, None))
    check_scales(row_scale, column_scale, tokens, (heads + 2 * k.shape[1]) * dim)
    return implementation("kv_write", q)(
        q,
        k,
        v,
        positions=positions,
        slots=slots,
        cos_sin=cos_sin,
        k_pages=k_pages,
        v_pages=v_pages,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        hidden=hidden,
        row_scale=row_scale,
        column_scale=column_scale,
        kv_scales=kv_scales,
        plan=plan,
    )


def plan_kv_write(positions: Tensor, slots: Tensor, cos_sin: Tensor) -> Any:
    """What is the same in all layers of one forward; to be handed to `kv_write` as it is. Arguments are kv_write's.
    None where the implementation needs no plan (the kernel's)."""
    return implementation("kv_write", positions, "plan")(positions, slots, cos_sin)
