from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.model.json_values import json_values, mutations
from xgr_stream.errors import CheckpointError
from xgr_stream.model.config import MAX_POSITIONS, ModelConfig
from xgr_stream.model.rope import YarnRope, cos_sin_table

QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "beta_fast": 16},
}


def test_defaults_are_those_of_the_family() -> None:
    bare = {key: QWEN3[key] for key in QWEN3 if key not in ("head_dim", "num_key_value_heads", "rope_parameters")}
    qwen3 = ModelConfig.from_json(bare)
    assert (qwen3.head_dim, qwen3.num_kv_heads, qwen3.rms_eps, qwen3.rope.theta) == (128, 4, 1e-6, 10_000.0)
    assert not qwen3.tied
    assert ModelConfig.from_json(bare | {"model_type": "llama", "head_dim": None}).head_dim == 12


def test_positions_are_bounded() -> None:
    assert ModelConfig.from_json(QWEN3 | {"max_position_embeddings": 1_010_000}).max_positions == MAX_POSITIONS


def test_yarn_takes_its_factor_from_the_contexts() -> None:
    rope = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}
    config = ModelConfig.from_json(QWEN3 | {"rope_parameters": rope})
    assert isinstance(config.rope, YarnRope)
    assert config.rope.factor == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type must be one of 'qwen3', 'qwen2', 'llama', not 'mixtral'"),
        ({"hidden_size": None}, "config.json must have the field 'hidden_size'"),
        ({"vocab_size": "many"}, "vocab_size must be an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of 'silu', not 'gelu'"),
        ({"quantization_config": {}}, "quantization_config is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention is not supported"),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "sliding-window attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "longrope"}}, "type 'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "su"}}, "rope_type must be one of 'default', 'linear', 'llama3', 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters must have the field 'factor'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq_factor must be above low_freq_factor",
        ),
    ],
    ids=str,
)
def test_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_json(QWEN3 | change)


@pytest.mark.parametrize(
    "unused",
    [
        {"use_sliding_window": False, "sliding_window": 64},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
        {"layer_types": ["full_attention", "full_attention"]},
    ],
    ids=str,
)
def test_sliding_window_that_no_layer_uses(unused: dict[str, Any]) -> None:
    ModelConfig.from_json(QWEN3 | unused)


@given(json_values | mutations(QWEN3))
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        config = ModelConfig.from_json(value)
    except CheckpointError:
        return
    cos_sin_table(config.rope, min(config.head_dim, 64), 8)
