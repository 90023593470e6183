"""From a Hugging Face directory to a model that can be served, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from xgr_stream.errors import CheckpointError, ConfigError
from xgr_stream.model.config import ModelConfig
from xgr_stream.model.decoder import Decoder
from xgr_stream.model.fields import read_json
from xgr_stream.model.settings import Settings
from xgr_stream.model.tokens import ItemTokens
from xgr_stream.model.vocabulary import read_vocabulary
from xgr_stream.model.weights import check_tensors, content_hash, place_weights, read_tensors

FP8_SIZES = 16
"""That FP8 products are made of on CUDA."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """A decoder and what it knows of items. Immutable; safe to share between threads."""

    config: ModelConfig
    decoder: Decoder
    tokens: ItemTokens
    settings: Settings
    version: str
    """16 hex digits, a hash of everything above but device and dtype."""


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    fp8: bool = False,
    item_tokens: object = None,
) -> Model:
    """Loads a Hugging Face directory: config.json, safetensors, and xgr.json.

    `dtype` None: float32 on the CPU, bfloat16 elsewhere. `fp8`: the layers' projections in FP8 (CUDA).
    `item_tokens`: the content of an xgr.json, used instead of the directory's. Raises `CheckpointError` for a
    checkpoint that is damaged, unsupported or does not fit together.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} must be a Hugging Face directory with a config.json")
    if item_tokens is None:
        if not (path / "xgr.json").is_file():
            raise CheckpointError(
                f"{path} must hold an xgr.json that says which tokens are items (docs/checkpoints.md), "
                "or the same settings must be given as item_tokens="
            )
        item_tokens = read_json(path / "xgr.json")
    return build_model(
        read_json(path / "config.json"),
        read_tensors(path),
        item_tokens,
        device=device,
        dtype=dtype,
        fp8=fp8,
        vocabulary=lambda: read_vocabulary(path),
    )


def _no_vocabulary() -> Mapping[str, object]:
    raise CheckpointError("item tokens are given by name, and there is no tokenizer to look them up in")


def build_model(
    config: object,
    tensors: Mapping[str, Tensor],
    xgr: object,
    *,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    fp8: bool = False,
    vocabulary: Callable[[], Mapping[str, object]] = _no_vocabulary,
) -> Model:
    """A model from the parsed config.json and xgr.json and tensors by their Hugging Face names, which are copied.

    `vocabulary` gives token ids by name and is called only if the item tokens are given by name.
    """
    parsed, settings = ModelConfig.from_json(config), Settings.from_json(xgr)
    tensors = check_tensors(parsed, tensors)
    tokens = ItemTokens(settings, parsed.vocab_size, vocabulary)
    _check_window(parsed, settings, tokens)
    device = usable_device(device)
    if fp8:
        _check_fp8(parsed, device, dtype)
    weights = place_weights(parsed, tensors, device, _dtype(dtype, device))
    version = content_hash(parsed, tensors, repr(settings), *(str(ids.tolist()) for ids in tokens.token_ids))
    return Model(parsed, Decoder(parsed, weights, tokens.token_ids, fp8=fp8), tokens, settings, version)


def _check_fp8(config: ModelConfig, device: torch.device, dtype: str | None) -> None:
    if dtype == "float16":  # products come before their scales: most of them are beyond its range
        raise ConfigError("dtype must be bfloat16 or float32 with fp8, not float16")
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = config.hidden_size, heads, heads + 2 * kv_heads, config.intermediate_size
    if any(size % FP8_SIZES for size in sizes):
        raise ConfigError(
            f"fp8 needs a hidden size, heads together, with keys and values, and an MLP of multiples of {FP8_SIZES}, "
            f"not {', '.join(map(str, sizes))}"
        )
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(f"fp8 needs CUDA with FP8 products (compute capability 8.9 or more), not {device}")
    if config.qkv_bias or config.output_bias or config.mlp_bias:
        raise ConfigError(f"fp8 is not supported for a {config.model_type} with biases")


def usable_device(device: str | torch.device) -> torch.device:
    """The device, if tensors can be put on it. Raises `ConfigError`."""
    reason = "nothing else is supported"
    try:
        if torch.device(device).type in ("cpu", "cuda"):
            return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for CUDA
        reason = str(error).partition("\n")[0]
    raise ConfigError(
        f"device must be 'cpu', or 'cuda' or 'cuda:N' of the {torch.cuda.device_count()} CUDA devices that torch finds "
        f"here, not {str(device)!r}: {reason}"
    )


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise ConfigError(f"dtype must be None or one of {', '.join(_DTYPES)}, not {name!r}")
    return _DTYPES[name]


def _check_window(config: ModelConfig, settings: Settings, tokens: ItemTokens) -> None:
    if settings.window is None:
        return
    needed = tokens.context_tokens(settings.window.max_events)
    if needed > config.max_positions:
        raise CheckpointError(
            f"xgr.json: a window of {settings.window.max_events} events takes up to {needed} tokens; "
            f"max_position_embeddings in config.json is {config.max_positions}"
        )


def save_checkpoint(
    path: str | Path, config: Mapping[str, object], tensors: Mapping[str, Tensor], xgr: Mapping[str, object]
) -> None:
    """Writes config.json, model.safetensors and xgr.json so that `load_model` and transformers can read them.

    `config` and `xgr` are what the files are to hold, `tensors` goes by Hugging Face names (no lm_head when tied).
    Checks that they fit together first, as `load_model` would; an existing checkpoint at `path` is replaced.
    """
    path = Path(path)
    parsed = ModelConfig.from_json(dict(config))
    checked = check_tensors(parsed, tensors)
    settings = Settings.from_json(dict(xgr))
    _check_window(parsed, settings, ItemTokens(settings, parsed.vocab_size, lambda: read_vocabulary(path)))
    path.mkdir(parents=True, exist_ok=True)
    # A copy each: safetensors refuses tensors that share memory, as views of fused ones do.
    contiguous = torch.contiguous_format
    owned = {name: tensor.cpu().clone(memory_format=contiguous) for name, tensor in checked.items()}
    # transformers refuses a file that does not say which framework wrote it.
    save_file(owned, path / "model.safetensors", metadata={"format": "pt"})
    umask = os.umask(0)
    os.umask(umask)
    (path / "model.safetensors").chmod(0o666 & ~umask)  # safetensors makes it its owner's alone, unlike the others
    # config.json last: a directory without it is no checkpoint yet.
    for name, value in (("xgr.json", xgr), ("config.json", config)):
        (path / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
