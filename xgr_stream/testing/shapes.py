"""Random models of named shapes and random catalogs of real sizes, made in seconds, to measure with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from xgr_stream.catalog import Catalog
from xgr_stream.catalog.columns import ItemColumns
from xgr_stream.catalog.strings import PackedStrings
from xgr_stream.catalog.tags import TagIndex
from xgr_stream.errors import ConfigError
from xgr_stream.model import Model, ModelConfig, build_model
from xgr_stream.model.tokens import ItemTokens


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of the Qwen3 family; its vocabulary is `text_tokens` and the item tokens behind them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    text_tokens: int
    codes: int
    """Codes per level where none are asked for."""


SHAPES = {
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 128, 3072, text_tokens=151_936, codes=8192),
    "qwen3-1.7b": Shape(28, 2048, 16, 8, 128, 6144, text_tokens=151_936, codes=8192),
    "small-0.1b": Shape(12, 768, 12, 4, 64, 2048, text_tokens=0, codes=8192),
    "tiny": Shape(2, 64, 4, 2, 16, 128, text_tokens=0, codes=16),
}
MAX_POSITIONS = 40_960
"""As Qwen3's."""


def random_model(
    shape: str,
    codes: tuple[int, ...],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    fp8: bool = False,
    seed: int = 0,
) -> Model:
    """A decoder of a shape of `SHAPES` over item tokens of `codes` per level. Its weights are drawn on the device, so
    the same seed gives other weights on another kind of device. `fp8`: the layers' products in FP8."""
    parts = SHAPES[shape]
    config = _config(parts, parts.text_tokens + sum(codes))
    generator = torch.Generator(device).manual_seed(seed)

    def tensor(name: str, dims: tuple[int, ...]) -> Tensor:
        noise = torch.randn(dims, generator=generator, device=device, dtype=dtype)
        # Norm weights vary too. Logits come out with a deviation of about 1.
        return noise.mul_(0.3).add_(1) if "norm" in name else noise.mul_(dims[-1] ** -0.5)

    tensors = {name: tensor(name, dims) for name, dims in ModelConfig.from_json(config).tensor_shapes().items()}
    xgr = {"format": 1, "codes": list(codes), "item_tokens": {"offset": parts.text_tokens}}
    name = str(dtype).removeprefix("torch.")
    return build_model(config, tensors, xgr, device=device, dtype=name, fp8=fp8)


def with_prompt(model: Model, num_tokens: int) -> Model:
    """The same decoder, weights shared, whose contexts begin with a prompt of so many tokens (0, 1, ...): together
    with whole events, it makes a context of any exact length."""
    settings = replace(model.settings, prompt=tuple(range(num_tokens)))
    tokens = ItemTokens(settings, model.config.vocab_size, dict)
    version = hashlib.sha256(f"{model.version}/{num_tokens}".encode()).hexdigest()[:16]
    return replace(model, settings=settings, tokens=tokens, version=version)


def random_catalog(codes: tuple[int, ...], items: int, *, tags: int = 0, seed: int = 0) -> Catalog:
    """A catalog of so many items with uniformly random semantic IDs, all available; two may share one. Each has one of
    `tags` tags, `tag-0` and so on, as many of each as of any other.

    Made in SID order: 1.5 million items take half the time that `Catalog.from_table` needs to check and sort them.
    """
    space = 1
    for level in codes:
        space *= level
    if space > 1 << 62:
        raise ConfigError(f"codes must have at most 2^62 combinations, not {codes}")
    keys = np.sort(np.random.default_rng(seed).integers(0, space, items))
    sids = np.empty((items, len(codes)), np.int32)
    for level in reversed(range(len(codes))):
        keys, sids[:, level] = np.divmod(keys, codes[level])
    tagged = np.random.default_rng((seed, 1)).permutation(items if tags else 0).astype(np.int32)
    first = 10 ** len(str(items))  # ids of one length: their order is the rows'
    columns = ItemColumns(
        item_ids=PackedStrings(pa.array(np.arange(first, first + items)).cast(pa.large_string())),
        sids=sids,
        codes=codes,
        tags=TagIndex.from_pairs(
            (f"tag-{tag}" for tag in range(tags)), tagged.astype(np.int64) % max(tags, 1), tagged, items
        ),
        popularity=None,
        available=np.ones(items, np.bool_),
    )
    return Catalog(columns)


def _config(shape: Shape, vocab_size: int) -> dict[str, object]:
    """Its config.json."""
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
