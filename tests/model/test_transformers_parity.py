"""Logits equal transformers' on the same checkpoint, to 1e-4 in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.model.checkpoints import FAMILIES, SMALL, XGR, make_model, save_model, transformers_logits
from tests.model.reference import reference_forward
from xgr_stream.model import ModelConfig, load_model
from xgr_stream.model.rope import cos_sin_table

TOKENS = torch.randint(0, 101, (150,), generator=torch.Generator().manual_seed(1))

LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def assert_same_logits(path: Path, model: Any) -> None:
    expected = transformers_logits(model, TOKENS)
    actual = reference_forward(load_model(path, item_tokens=XGR).decoder, TOKENS)
    assert expected.std() > 0.5  # a model that says the same everywhere would pass every comparison
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_family(tmp_path: Path, family: str, tied: bool) -> None:
    assert_same_logits(tmp_path, save_model(tmp_path, family, tie_word_embeddings=tied))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"num_key_value_heads": 4, "head_dim": 8}),
        ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
        ("qwen2", {"num_key_value_heads": 1}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"head_dim": 20, "num_key_value_heads": 4}),
    ],
    ids=str,
)
def test_shapes_and_biases(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    assert_same_logits(tmp_path, save_model(tmp_path, family, **config))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1_000_000.0},
        LINEAR,
        LLAMA3,
        YARN,
        YARN | {"attention_factor": 1.7},
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    ],
    ids=str,
)
def test_rope(tmp_path: Path, family: str, rope: dict[str, Any]) -> None:
    assert_same_logits(tmp_path, save_model(tmp_path, family, rope_parameters=rope))


@pytest.mark.parametrize("rope", [None, LINEAR, LLAMA3, YARN, YARN | {"truncate": False}], ids=str)
def test_rope_far_out(rope: dict[str, Any] | None) -> None:
    """Frequencies are equal to the bit: the last one of them moves the angle at position 100,000 by 0.01 radian."""
    config = LlamaConfig(**SMALL | {"head_dim": 64, "max_position_embeddings": 131_072, "rope_parameters": rope})
    positions = torch.arange(0, 131_072, 97)
    cos, sin = LlamaRotaryEmbedding(config)(torch.empty(0), positions[None])
    parsed = ModelConfig.from_json(config.to_dict())
    table = cos_sin_table(parsed.rope, parsed.head_dim, parsed.max_positions)[positions]
    torch.testing.assert_close(table, torch.cat([cos[0, :, :32], sin[0, :, :32]], dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rope", [None, LINEAR, LLAMA3, YARN], ids=str)
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_config_of_transformers_4(tmp_path: Path, rope: dict[str, Any] | None, kind: str) -> None:
    theta = {"rope_type": "default", "rope_theta": 5_000.0}
    model = save_model(tmp_path, "llama", rope_parameters=theta | (rope or {}))
    config = json.loads((tmp_path / "config.json").read_text())
    written = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = written.pop("rope_theta")
    config["rope_scaling"] = {kind: written.pop("rope_type"), **written} if rope else None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_logits(tmp_path, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards(tmp_path: Path, family: str) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert_same_logits(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_computed_in_float32_on_the_cpu(tmp_path: Path, dtype: torch.dtype) -> None:
    make_model("qwen3").to(dtype).save_pretrained(tmp_path)
    # Read back, not cast back: a cast model keeps RoPE's frequencies rounded.
    assert_same_logits(tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    decoder = load_model(tmp_path, dtype="bfloat16", item_tokens=XGR).decoder
    actual = reference_forward(decoder, TOKENS)
    assert decoder.dtype == torch.bfloat16
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, transformers_logits(model, TOKENS), atol=0.3, rtol=0)
