"""Small checkpoints with random weights, made by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
XGR = {"codes": [16, 16, 8], "item_tokens": {"offset": 60}}


def make_model(family: str, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A model whose every parameter is random: at their initial ones and zeros, a norm's weight or a bias that the
    decoder forgot would go unnoticed."""
    config_class, model_class = FAMILIES[family]
    heads = {"head_dim": 16} if family == "qwen3" else {}
    model = model_class(config_class(**SMALL | heads | config)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.15, generator=generator)
        else:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


def save_model(path: Path, family: str = "qwen3", **config: Any) -> PreTrainedModel:
    model = make_model(family, **config)
    model.save_pretrained(path)
    return model


@torch.no_grad()
def transformers_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [n, vocab] of the sequence `tokens` [n]."""
    return model(tokens[None]).logits[0]
