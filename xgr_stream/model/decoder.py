"""The decoder: everything of a Qwen3, Qwen2 or Llama forward but the attention, which its caller brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.dispatch import launching_on
from xgr_stream.model.config import ModelConfig
from xgr_stream.model.kv_bounds import key_value_bounds
from xgr_stream.model.layers import Layers, Style
from xgr_stream.model.rope import cos_sin_table
from xgr_stream.model.weights import DecoderWeights


class Attend(Protocol):
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, /, **scaling: Tensor) -> Tensor:
        """Normalises and rotates `q` [n, heads, head_dim] and `k` [n, kv_heads, head_dim], keeps `k` and `v`, and
        attends over all that each token may see. `scaling`: what `kv_write` is to multiply them by first, which only
        decoders on CUDA ask for. Returns [n, heads, head_dim], in FP8 divided by the layer's `attended_scales` if there
        are any; in the last layer those of the `wanted` tokens alone, if `forward` was given any."""


class Decoder:
    """Weights and the forward pass over them. Holds no state between calls."""

    cos_sin: Tensor
    """[max_positions, head_dim] float32: cosines, then sines, RoPE's scaling included."""
    level_tokens: tuple[Tensor, ...]
    """Per level [codes] int64: the token of each code."""
    kv_bounds: Tensor
    """[layers, 2, kv_heads] float32: the most that an element of a head's keys, and of its values, can be."""

    def __init__(
        self, config: ModelConfig, weights: DecoderWeights, token_ids: Sequence[NDArray[np.int64]], *, fp8: bool = False
    ) -> None:
        """`token_ids` per level [codes]: the tokens whose rows of the head that level scores. `fp8`: the layers'
        projections in FP8; `weights` may then be let go of."""
        self.config = config
        self.fp8 = fp8
        self._embedding, self._head = weights.embedding, weights.head
        self._qk_norms = tuple((layer.q_norm, layer.k_norm) for layer in weights.layers)
        self._level_heads = tuple(_rows(weights.head, ids) for ids in token_ids)
        self._level_slices = tuple(map(_side_by_side, token_ids))
        self.level_tokens = tuple(torch.from_numpy(ids.copy()).to(weights.head.device) for ids in token_ids)
        table = cos_sin_table(config.rope, config.head_dim, config.max_positions)
        self.cos_sin = table.to(weights.head.device)
        self.kv_bounds = key_value_bounds(config, weights, self.cos_sin)
        with launching_on(self.device):  # FP8's quantising
            self._layers = Layers(config, weights.layers, weights.norm, self.kv_bounds[:, 1] if fp8 else None)

    @property
    def device(self) -> torch.device:
        return self._head.device

    @property
    def dtype(self) -> torch.dtype:
        return self._head.dtype

    @property
    def embedding(self) -> Tensor:
        """[vocab, hidden]"""
        return self._embedding

    @property
    def rms_eps(self) -> float:
        return self.config.rms_eps

    def q_norm(self, layer: int) -> Tensor | None:
        """[head_dim]: the weight of the query's RMSNorm, None where the family has none."""
        return self._qk_norms[layer][0]

    def k_norm(self, layer: int) -> Tensor | None:
        """[head_dim]: the weight of the key's RMSNorm, None where the family has none."""
        return self._qk_norms[layer][1]

    def attended_scales(self, layer: int) -> Tensor | None:
        """[kv_heads] float32: in FP8, where `attend` is to return it so, what its results are divided by."""
        return self._layers.attended_scales(layer)

    def forward(
        self, tokens: Tensor, attend: Attend, wanted: Tensor | None = None, style: Style | None = None
    ) -> Tensor:
        """`layers` over `tokens` [n] int64."""
        return self.layers(F.embedding(tokens, self.embedding), attend, wanted, style)

    def layers(
        self, hidden: Tensor, attend: Attend, wanted: Tensor | None = None, style: Style | None = None
    ) -> Tensor:
        """Runs all layers over embedded tokens [n, hidden], in whatever order and of whatever users: only `attend`
        relates them. Returns the hidden states after the final norm, [n, hidden]; with `wanted` [m], indices of
        tokens, theirs alone, [m, hidden], and the last layer computes nothing else but keys and values. `style`: one
        of `styles`, by default the first."""
        return self._layers(hidden, attend, wanted, style)

    def styles(self, rows: int) -> tuple[Style, ...]:
        """The ways to compute so many rows of which only a measurement tells the fastest."""
        return self._layers.styles(rows)

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Raw logits of a level's codes after `hidden` [n, hidden]: [n, codes] float32."""
        return _logits(hidden, self._level_heads[level])

    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """Raw logits of all tokens after `hidden` [n, hidden]: [n, vocab] float32."""
        return _logits(hidden, self._head)

    def vocabulary_log_normalizer(self, hidden: Tensor) -> Tensor:
        """The log-sum-exp of the `vocabulary_logits`: [n] float32."""
        return _log_normalizer(self.vocabulary_logits(hidden))

    def level_and_vocabulary(self, hidden: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The `level_logits` and the `vocabulary_log_normalizer`. On a CPU one product, where it can be."""
        own = self._level_slices[level]
        if own is None or hidden.is_cuda:
            return self.level_logits(hidden, level), self.vocabulary_log_normalizer(hidden)
        logits = self.vocabulary_logits(hidden)
        return logits[:, own], _log_normalizer(logits)


def _log_normalizer(logits: Tensor) -> Tensor:
    """The log-sum-exp of each row. [n]"""
    if logits.is_cuda:
        return logits.logsumexp(dim=-1)
    return logits[:, 0] - logits.log_softmax(dim=-1)[:, 0]  # one operation instead of seven


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    """[n, hidden] · [rows, hidden]ᵀ in float32, whose sums are not rounded to the head's dtype on CUDA."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, head.t(), out_dtype=torch.float32)
    logits = F.linear(hidden, head)
    return logits if logits.dtype is torch.float32 else logits.float()


def _rows(head: Tensor, ids: NDArray[np.int64]) -> Tensor:
    """The rows `ids` of `head`: a view where they lie side by side, else a copy."""
    place = _side_by_side(ids)
    if place is not None:
        return head[place]
    return head[torch.tensor(ids, device=head.device)]


def _side_by_side(ids: NDArray[np.int64]) -> slice | None:
    """The slice of the vocabulary that `ids` are, if they are one."""
    first, count = int(ids[0]), len(ids)
    return slice(first, first + count) if np.array_equal(ids, np.arange(first, first + count)) else None
