"""How large keys and values can get, whatever the tokens: read off the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_stream.model.config import ModelConfig
from xgr_stream.model.weights import DecoderWeights, LayerWeights


def key_value_bounds(config: ModelConfig, weights: DecoderWeights, cos_sin: Tensor) -> Tensor:
    """The most that an element of a head's keys (as attended to: normalised and rotated) and of its values can be, but
    for rounding. [layers, 2, kv_heads] float32

    A hidden state behind RMSNorm is its weight times a vector of length at most sqrt(hidden), so a projection's output
    is at most sqrt(hidden) · ‖row · norm weight‖ + |bias| (Cauchy-Schwarz). A rotation keeps the length of a pair,
    but for RoPE's own scaling. `cos_sin`: [max_positions, head_dim].
    """
    stretch = cos_sin.unflatten(1, (2, -1)).square().sum(1).max().sqrt()
    return torch.stack([_layer_bounds(config, layer, stretch) for layer in weights.layers])


def _layer_bounds(config: ModelConfig, layer: LayerWeights, stretch: Tensor) -> Tensor:
    """[2, kv_heads]"""
    size = config.num_kv_heads * config.head_dim
    rows = layer.qkv[-2 * size :].float() * layer.input_norm.float()
    outputs = torch.linalg.vector_norm(rows, dim=1) * config.hidden_size**0.5
    if layer.qkv_bias is not None:
        outputs += layer.qkv_bias[-2 * size :].float().abs()
    keys, values = outputs.view(2, config.num_kv_heads, config.head_dim)
    if layer.k_norm is None:
        key_bounds = torch.linalg.vector_norm(keys.unflatten(1, (2, -1)), dim=1).amax(1)
    else:
        key_bounds = (layer.k_norm.float().abs().max() * config.head_dim**0.5).expand(config.num_kv_heads)
    return torch.stack([key_bounds * stretch, values.amax(1)])
