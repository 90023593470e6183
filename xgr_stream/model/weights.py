"""Tensors of a Hugging Face directory: safetensors only, checked against the config, fused for the decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xgr_stream.errors import CheckpointError
from xgr_stream.model.config import ModelConfig
from xgr_stream.model.fields import Fields, read_json

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_SMALL = 1 << 18
"""Elements of a projection that stays in a core's cache."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor at `path` by name, still mapped from its file: copy what is to outlive the file."""
    if (path / _SINGLE).is_file():
        return _read_file(path / _SINGLE)
    if (path / _INDEX).is_file():
        return _read_shards(path)
    if (path / "pytorch_model.bin").is_file() or (path / "pytorch_model.bin.index.json").is_file():
        raise CheckpointError(
            f"{path} holds pickled weights (pytorch_model.bin), which can run code when read; load it once with "
            "transformers where you trust it and save_pretrained() it as safetensors"
        )
    raise CheckpointError(f"{path} must hold {_SINGLE}, or {_INDEX} and its shards")


def _read_shards(path: Path) -> dict[str, Tensor]:
    weight_map = Fields(read_json(path / _INDEX), _INDEX).object("weight_map")
    files: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{weight_map.name}.{name} must be the name of a file beside it, not {file!r}")
        files.setdefault(file, []).append(name)
    tensors: dict[str, Tensor] = {}
    for file, names in sorted(files.items()):
        shard = _read_file(path / file)
        for name in names:
            if name not in shard:
                raise CheckpointError(f"tensor {name} is not in {file}, where {_INDEX} says it is")
            tensors[name] = shard[name]
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path} as safetensors: {error}") from error


def check_tensors(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `config` asks for. Raises `CheckpointError` for one that is missing, left over, of another
    shape or not of floats."""
    shapes = config.tensor_shapes()
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"the checkpoint lacks tensor {name}; config.json asks for it with shape {shape}")
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"tensor {name} has shape {tuple(tensor.shape)} in the checkpoint; config.json asks for {shape}"
            )
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(f"tensor {name} must be of float32, float16 or bfloat16, not {tensor.dtype}")
        # NaN passes through both; unlike isfinite() this takes no memory.
        if not all(map(math.isfinite, map(float, tensor.detach().aminmax()))):
            raise CheckpointError(f"tensor {name} must hold finite numbers, not NaN or infinity")
    for name in sorted(tensors.keys() - shapes.keys()):
        if not _is_redundant(name, tensors):
            raise CheckpointError(
                f"the checkpoint holds tensor {name} of shape {tuple(tensors[name].shape)}, "
                f"for which a {config.model_type} of this config.json has no place"
            )
    return {name: tensors[name].detach() for name in shapes}


def _is_redundant(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether an unasked-for tensor says nothing new: old Llama files keep RoPE's frequencies, which the config
    gives too, and some savers write a tied head out."""
    if name.endswith(".rotary_emb.inv_freq"):
        return True
    return name == "lm_head.weight" and torch.equal(tensors[name], tensors["model.embed_tokens.weight"])


def content_hash(config: ModelConfig, tensors: Mapping[str, Tensor], *parts: str) -> str:
    """16 hex digits that depend on the values alone: not on file names, sharding or the dtype computed in."""
    digest = sha256(repr(config).encode())
    for part in parts:
        digest.update(part.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Projections that read the same input are fused, so that each is one matrix product."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 kv_heads) * head_dim, hidden]
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None  # [head_dim]
    output: Tensor  # [hidden, heads * head_dim]
    output_bias: Tensor | None
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    gate_up_bias: Tensor | None
    down: Tensor  # [hidden, intermediate]
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All parameters, owned, on one device in one dtype."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocab, hidden]; the embedding itself when tied


def place_weights(
    config: ModelConfig, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> DecoderWeights:
    """Copies checked tensors to the device, layer by layer, fusing on the way."""

    def place(*names: str) -> Tensor:
        # cat copies even a single tensor, so that nothing stays mapped to a file that may be replaced.
        return torch.cat([tensors[name].to(device=device, dtype=dtype) for name in names])

    def place_layer(layer: int) -> LayerWeights:
        def fused(kind: str, *modules: str) -> Tensor:
            return place(*(f"model.layers.{layer}.{module}.{kind}" for module in modules))

        def projection(*modules: str) -> Tensor:
            # Small ones column by column on a CPU: a decode's 50 rows take a sixth less, a prefill's 600 as long. Of
            # larger ones they take from a fifth less to a seventh more, and of other dtypes twice as long and longer.
            weight = fused("weight", *modules)
            by_column = device.type == "cpu" and weight.dtype is torch.float32 and weight.numel() <= _SMALL
            return weight.t().contiguous().t() if by_column else weight

        qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        gate_up = ("mlp.gate_proj", "mlp.up_proj")
        return LayerWeights(
            input_norm=fused("weight", "input_layernorm"),
            qkv=projection(*qkv),
            qkv_bias=fused("bias", *qkv) if config.qkv_bias else None,
            q_norm=fused("weight", "self_attn.q_norm") if config.qk_norm else None,
            k_norm=fused("weight", "self_attn.k_norm") if config.qk_norm else None,
            output=projection("self_attn.o_proj"),
            output_bias=fused("bias", "self_attn.o_proj") if config.output_bias else None,
            post_norm=fused("weight", "post_attention_layernorm"),
            gate_up=projection(*gate_up),
            gate_up_bias=fused("bias", *gate_up) if config.mlp_bias else None,
            down=projection("mlp.down_proj"),
            down_bias=fused("bias", "mlp.down_proj") if config.mlp_bias else None,
        )

    embedding = place("model.embed_tokens.weight")
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(place_layer(layer) for layer in range(config.num_layers)),
        norm=place("model.norm.weight"),
        head=embedding if config.tied else place("lm_head.weight"),
    )
