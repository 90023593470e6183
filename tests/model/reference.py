"""A plain full-sequence forward through the decoder: rope and causal attention written out, no pages, no kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xgr_stream.model import Decoder

Kept = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def reference_forward(decoder: Decoder, tokens: Tensor, kept: Kept = lambda layer, k, v: (k, v)) -> Tensor:
    """Logits [n, vocab] of the sequence `tokens` [n]. `kept`: what is attended to instead of a layer's keys and values,
    [n, kv_heads, dim] each."""
    positions = torch.arange(len(tokens), device=tokens.device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rotated(normed(q, decoder.q_norm(layer), decoder.rms_eps), decoder.cos_sin[positions])
        k = rotated(normed(k, decoder.k_norm(layer), decoder.rms_eps), decoder.cos_sin[positions])
        return causal_attention(q, *kept(layer, k, v))

    return decoder.vocabulary_logits(decoder.forward(tokens, attend))


def normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension of [n, heads, dim]."""
    if weight is None:
        return x
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotated(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotates [n, heads, dim] by [n, dim] cosines and sines."""
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [n, heads, dim], k and v [n, kv_heads, dim] -> [n, heads, dim]."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * q.shape[-1] ** -0.5
    future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.float()).to(q.dtype)
