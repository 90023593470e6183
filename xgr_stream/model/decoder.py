"""The decoder: everything of a Qwen3, Qwen2 or Llama forward but the attention, which its caller brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.gate_up_silu import gate_up_silu
from xgr_kernels.rms_norm import rms_norm
from xgr_kernels.silu_mul import silu_mul
from xgr_stream.model.config import ModelConfig
from xgr_stream.model.rope import cos_sin_table
from xgr_stream.model.weights import DecoderWeights, LayerWeights

FUSED_GATE_ROWS = 1024
"""From so many rows on, SiLU in the product's epilogue costs nothing."""


class Attend(Protocol):
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, /) -> Tensor:
        """Normalises and rotates `q` [n, heads, head_dim] and `k` [n, kv_heads, head_dim], keeps `k` and `v`, and
        attends over all that each token may see. Returns [n, heads, head_dim]; in the last layer those of the
        `wanted` tokens alone, if `forward` was given any."""


class Decoder:
    """Weights and the forward pass over them. Holds no state between calls."""

    cos_sin: Tensor
    """[max_positions, head_dim] float32: cosines, then sines, RoPE's scaling included."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights, token_ids: Sequence[NDArray[np.int64]]) -> None:
        """`token_ids` per level [codes]: the tokens whose rows of the head that level scores."""
        self.config = config
        self._weights = weights
        self._level_heads = tuple(_rows(weights.head, ids) for ids in token_ids)
        table = cos_sin_table(config.rope, config.head_dim, config.max_positions)
        self.cos_sin = table.to(weights.head.device)

    @property
    def device(self) -> torch.device:
        return self._weights.head.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weights.head.dtype

    @property
    def embedding(self) -> Tensor:
        """[vocab, hidden]"""
        return self._weights.embedding

    @property
    def rms_eps(self) -> float:
        return self.config.rms_eps

    def q_norm(self, layer: int) -> Tensor | None:
        """[head_dim]: the weight of the query's RMSNorm, None where the family has none."""
        return self._weights.layers[layer].q_norm

    def k_norm(self, layer: int) -> Tensor | None:
        """[head_dim]: the weight of the key's RMSNorm, None where the family has none."""
        return self._weights.layers[layer].k_norm

    def forward(self, tokens: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """`layers` over `tokens` [n] int64."""
        return self.layers(F.embedding(tokens, self.embedding), attend, wanted)

    def layers(self, hidden: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """Runs all layers over embedded tokens [n, hidden], in whatever order and of whatever users: only `attend`
        relates them. Returns the hidden states after the final norm, [n, hidden]; with `wanted` [m], indices of
        tokens, theirs alone, [m, hidden], and the last layer computes nothing else but keys and values."""
        config, eps = self.config, self.config.rms_eps
        heads, kv_heads = config.num_heads, config.num_kv_heads
        layers = self._weights.layers
        norms = [*(layer.input_norm for layer in layers[1:]), self._weights.norm]
        normed = rms_norm(hidden, layers[0].input_norm, eps)
        for i, (layer, next_norm) in enumerate(zip(layers, norms, strict=True)):
            qkv = F.linear(normed, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, config.head_dim)
            attended = attend(i, *qkv.tensor_split((heads, heads + kv_heads), dim=1))
            if wanted is not None and i == config.num_layers - 1:
                hidden = hidden[wanted]
            attended = F.linear(attended.flatten(1), layer.output, layer.output_bias)
            normed, hidden = rms_norm(attended, layer.post_norm, eps, hidden)
            gated = self._gated(normed, layer)
            normed, hidden = rms_norm(F.linear(gated, layer.down, layer.down_bias), next_norm, eps, hidden)
        return normed

    def _gated(self, normed: Tensor, layer: LayerWeights) -> Tensor:
        """silu(gate) · up of normed states [n, hidden]: [n, intermediate]."""
        if normed.is_cuda and len(normed) >= FUSED_GATE_ROWS and layer.gate_up_bias is None:
            return gate_up_silu(normed, layer.gate_up)
        return silu_mul(F.linear(normed, layer.gate_up, layer.gate_up_bias))

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Raw logits of a level's codes after `hidden` [n, hidden]: [n, codes] float32."""
        return _logits(hidden, self._level_heads[level])

    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """Raw logits of all tokens after `hidden` [n, hidden]: [n, vocab] float32."""
        return _logits(hidden, self._weights.head)


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    """[n, hidden] · [rows, hidden]ᵀ in float32, whose sums are not rounded to the head's dtype on CUDA."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, head.t(), out_dtype=torch.float32)
    return F.linear(hidden, head).float()


def _rows(head: Tensor, ids: NDArray[np.int64]) -> Tensor:
    """The rows `ids` of `head`: a view where they lie side by side, else a copy."""
    first, count = int(ids[0]), len(ids)
    if np.array_equal(ids, np.arange(first, first + count)):
        return head[first : first + count]
    return head[torch.tensor(ids, device=head.device)]
