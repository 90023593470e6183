"""A random decoder and a random catalog, small enough for a unit test, on any machine, with no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xgr_stream.catalog import Catalog
from xgr_stream.model import Model, ModelConfig, build_model, save_checkpoint

NUM_SPECIAL_TOKENS = 8
"""Tokens 0 to 7 of a tiny checkpoint name no item; use them in a prompt, a tail or an event's frame."""

TAGS = ("red", "green", "blue")


def tiny_model(codes: Sequence[int] = (8, 8, 8), *, seed: int = 0, **fields: Any) -> Model:
    """A random decoder over the item tokens of `codes`; `fields` as in `tiny_checkpoint`."""
    config, tensors, xgr = tiny_checkpoint(codes, seed=seed, **fields)
    return build_model(config, tensors, xgr)


def save_tiny_model(path: str | Path, codes: Sequence[int] = (8, 8, 8), *, seed: int = 0, **fields: Any) -> Path:
    """The same decoder as a checkpoint that `load_model` and transformers read."""
    config, tensors, xgr = tiny_checkpoint(codes, seed=seed, **fields)
    save_checkpoint(path, config, tensors, xgr)
    return Path(path)


def tiny_checkpoint(
    codes: Sequence[int] = (8, 8, 8),
    *,
    seed: int = 0,
    config: Mapping[str, object] | None = None,
    xgr: Mapping[str, object] | None = None,
) -> tuple[dict[str, object], dict[str, Tensor], dict[str, object]]:
    """config.json, tensors and xgr.json of a random Qwen3: 2 layers, 4 heads and 2 key-value heads of 8.

    `config` and `xgr` replace single fields, for example `xgr={"tail": [1]}`. The vocabulary is the special tokens,
    the codes' tokens and three more.
    """
    config_json: dict[str, object] = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": NUM_SPECIAL_TOKENS + sum(codes) + 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        **(config or {}),
    }
    xgr_json: dict[str, object] = {
        "format": 1,
        "codes": list(codes),
        "item_tokens": {"offset": NUM_SPECIAL_TOKENS},
        **(xgr or {}),
    }
    generator = torch.Generator().manual_seed(seed)
    shapes = ModelConfig.from_json(config_json).tensor_shapes()
    tensors = {name: _random(name, shape, generator) for name, shape in shapes.items()}
    return config_json, tensors, xgr_json


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    # Norm weights vary too, or one that is left out stays hidden.
    return 1 + 0.3 * noise if "norm" in name else noise * shape[-1] ** -0.5


def tiny_catalog(codes: Sequence[int] = (8, 8, 8), *, items: int = 60, shared: float = 0.2, seed: int = 0) -> Catalog:
    """A catalog of `tiny_items`."""
    return Catalog.from_table(tiny_items(codes, items=items, shared=shared, seed=seed), codes=tuple(codes))


def tiny_items(
    codes: Sequence[int] = (8, 8, 8), *, items: int = 60, shared: float = 0.2, seed: int = 0
) -> dict[str, list[Any]]:
    """Columns of a catalog: items `item-0`, `item-1`, ... with random semantic IDs, tags of `TAGS` (none to all) and
    popularities. About a `shared` part of the items has the semantic ID of another."""
    random = np.random.default_rng(seed)
    sids = np.stack([random.integers(0, n, items) for n in codes], axis=1)
    copies = random.random(items) < shared
    sids[copies] = sids[random.integers(0, items, int(copies.sum()))]
    tagged = random.random((items, len(TAGS))) < 0.4
    return {
        "item_id": [f"item-{i}" for i in range(items)],
        "sid": sids.tolist(),
        "tags": [[tag for tag, has in zip(TAGS, row, strict=True) if has] for row in tagged.tolist()],
        "popularity": random.random(items).tolist(),
    }
