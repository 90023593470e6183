"""The decoder that is trained: Qwen3's architecture over semantic-ID tokens, parameters under Hugging Face's names.

Written for training alone (whole windows, no cache); serving is the library's business and reads the saved weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    levels: int = 3
    codes: int = 64
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    head_dim: int = 32
    intermediate: int = 384
    max_positions: int = 1024
    rope_theta: float = 10_000.0
    rms_eps: float = 1e-6

    @property
    def vocab(self) -> int:
        return self.levels * self.codes

    def config(self) -> dict[str, Any]:
        """The Hugging Face `config.json` of this shape."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.rms_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "dtype": "float32",
        }


class Decoder(nn.Module):
    """Tokens in, hidden states out; `sid_loss` turns them into the loss over each level's own codes."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = dropout
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape, dropout) for _ in range(shape.layers))
        self.norm = _RMSNorm(shape.hidden, shape.rms_eps)
        angles = _angles(shape)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [batch, length] int64 → hidden states after the final norm [batch, length, hidden]."""
        length = tokens.shape[1]
        rotation = (self.cos[:length], self.sin[:length])
        hidden = F.dropout(self.embed_tokens(tokens), self.dropout, self.training)
        for layer in self.layers:
            hidden = layer(hidden, rotation)
        return self.norm(hidden)

    def sid_loss(self, tokens: Tensor, smoothing: float) -> Tensor:
        """Mean cross-entropy of each token under a softmax over its own level's codes.

        tokens [batch, events * levels] int64, padded at the end with -1. The first event's first code has no context
        and is not predicted.
        """
        levels, codes = self.shape.levels, self.shape.codes
        hidden = self(tokens.clamp(min=0))[:, :-1]
        losses = []
        for level in range(levels):
            # Predicted from the state of the token before: of the same event, or for level 0 of the event before.
            targets = tokens[:, level or levels :: levels]
            states = hidden[:, (level - 1) % levels :: levels][:, : targets.shape[1]]
            known = targets >= 0
            logits = states[known] @ self.embed_tokens.weight[level * codes : (level + 1) * codes].T
            losses.append(
                F.cross_entropy(logits, targets[known] - level * codes, reduction="sum", label_smoothing=smoothing)
            )
        return torch.stack(losses).sum() / (tokens[:, 1:] >= 0).sum()

    def hugging_face_state(self) -> dict[str, Tensor]:
        """The weights as `Qwen3ForCausalLM` names them (tied: no `lm_head`)."""
        return {f"model.{name}": value.detach().contiguous() for name, value in self.state_dict().items()}


class _Layer(nn.Module):
    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.input_layernorm = _RMSNorm(shape.hidden, shape.rms_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _RMSNorm(shape.hidden, shape.rms_eps)
        self.mlp = _FeedForward(shape)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden), rotation)
        hidden = hidden + F.dropout(attended, self.dropout, self.training)
        fed = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + F.dropout(fed, self.dropout, self.training)


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.head_dim = shape.heads, shape.head_dim
        width = shape.heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden, bias=False)
        self.q_norm = _RMSNorm(shape.head_dim, shape.rms_eps)
        self.k_norm = _RMSNorm(shape.head_dim, shape.rms_eps)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        def split(x: Tensor) -> Tensor:  # [batch, length, heads, head_dim]
            return x.unflatten(-1, (self.heads, self.head_dim))

        q = _rotate(self.q_norm(split(self.q_proj(hidden))).transpose(1, 2), rotation)
        k = _rotate(self.k_norm(split(self.k_proj(hidden))).transpose(1, 2), rotation)
        v = split(self.v_proj(hidden)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class _RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _angles(shape: Shape) -> Tensor:
    """[max_positions, head_dim] rotation angles, both halves alike (Hugging Face's `rotate_half` convention)."""
    frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    half = torch.outer(torch.arange(shape.max_positions).float(), frequencies)
    return torch.cat([half, half], dim=-1)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x [batch, heads, length, head_dim], turned by its position."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
