"""No key and no value is beyond what the weights bound it by, and the bound is no larger than it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.checkpoints import FAMILIES, SMALL, XGR, make_model
from tests.model.reference import reference_forward
from xgr_stream.model import Decoder, build_model

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def make_decoder(family: str, **config: Any) -> Decoder:
    model = make_model(family, **config)
    return build_model(model.config.to_dict(), model.state_dict(), XGR).decoder


@pytest.mark.parametrize(
    ("family", "config"),
    [
        *((family, {}) for family in FAMILIES),
        ("qwen3", {"attention_bias": True}),
        ("llama", {"attention_bias": True, "rope_parameters": YARN}),
        ("qwen3", {"rope_parameters": YARN, "num_key_value_heads": 1}),
    ],
    ids=str,
)
def test_nothing_is_beyond_them(family: str, config: dict[str, Any]) -> None:
    decoder = make_decoder(family, **config)
    largest = torch.zeros_like(decoder.kv_bounds)

    def kept(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        largest[layer] = torch.stack([own.abs().amax((0, 2)) for own in (k, v)])
        return k, v

    reference_forward(decoder, torch.randint(0, SMALL["vocab_size"], (200,)), kept)
    assert decoder.kv_bounds.shape == (SMALL["num_hidden_layers"], 2, decoder.config.num_kv_heads)
    assert (largest <= decoder.kv_bounds).all()
    # Of 200 tokens; what FP8 has below its largest number is 28,672 times as much as this slack.
    assert (largest > decoder.kv_bounds / 8).all()


def test_the_bound_of_a_value_is_reached() -> None:
    """By the hidden state that points where the head's longest row does."""
    decoder = make_decoder("llama")
    layer, size = decoder._layers._layers[1], decoder.config.num_kv_heads * decoder.config.head_dim
    rows = layer.qkv[-size:] * layer.input_norm
    normed = torch.nn.functional.rms_norm(rows, (SMALL["hidden_size"],), layer.input_norm)
    reached = (layer.qkv[-size:] @ normed.t()).diag().view(decoder.config.num_kv_heads, -1).amax(1)
    torch.testing.assert_close(reached, decoder.kv_bounds[1, 1])
