from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model.checkpoints import XGR, make_model
from tests.model.reference import reference_forward
from xgr_kernels.fp8 import quantise_heads
from xgr_stream.model import Decoder, ModelConfig, build_model
from xgr_stream.model.layers import Style
from xgr_stream.model.weights import place_weights


def make_decoder(item_tokens: object = None, family: str = "qwen3") -> Decoder:
    model = make_model(family, tie_word_embeddings=False)
    return build_model(
        model.config.to_dict(), model.state_dict(), XGR | ({"item_tokens": item_tokens} if item_tokens else {})
    ).decoder


@pytest.mark.parametrize(
    ("item_tokens", "ids"),
    [
        ({"offset": 60}, [range(60, 76), range(76, 92), range(92, 100)]),
        ({"table": [[*range(30, 14, -1)], [*range(50, 66)], [*range(0, 16, 2)]]}, None),
    ],
    ids=["side by side", "scattered"],
)
def test_level_logits_are_the_vocabularys(item_tokens: dict[str, list[list[int]]], ids: list[range] | None) -> None:
    decoder = make_decoder(item_tokens)
    hidden = torch.randn(7, 48)
    for level, tokens in enumerate(ids or item_tokens["table"]):
        expected = decoder.vocabulary_logits(hidden)[:, list(tokens)]
        torch.testing.assert_close(decoder.level_logits(hidden, level), expected, atol=1e-5, rtol=0)
        logits, log_normalizer = decoder.level_and_vocabulary(hidden, level)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(log_normalizer, decoder.vocabulary_logits(hidden).logsumexp(-1))


def test_tokens_side_by_side_take_no_second_copy_of_the_head() -> None:
    decoder = make_decoder({"offset": 60})
    storage = decoder._head.untyped_storage().data_ptr()
    assert {head.untyped_storage().data_ptr() for head in decoder._level_heads} == {storage}


def test_only_attend_relates_tokens() -> None:
    """Rows are computed alike in any order and beside any others."""
    decoder = make_decoder()
    tokens = torch.randint(0, 101, (9,))

    def no_context(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert (q.shape[1:], k.shape[1:], v.shape[1:]) == ((4, 16), (2, 16), (2, 16))
        return v.repeat_interleave(2, dim=1)

    hidden = decoder.forward(tokens, no_context)
    backwards = decoder.forward(tokens.flip(0), no_context)
    torch.testing.assert_close(backwards.flip(0), hidden)
    assert decoder.forward(tokens[:0], no_context).shape == (0, 48)


def values_alone(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to each token's own value."""
    return v.repeat_interleave(2, dim=1)


def test_silu_in_the_products_epilogue_changes_nothing_but_rounding() -> None:
    decoder, hidden = make_decoder(), torch.randn(9, 48)
    plain, fused = (decoder.layers(hidden, values_alone, style=style) for style in (Style.PLAIN, Style.FUSED_GATE))
    torch.testing.assert_close(fused, plain)


def test_products_in_fp8_are_those_of_the_weights_within_its_steps() -> None:
    """On a CPU, which is not offered it."""
    model = make_model("qwen3", tie_word_embeddings=False)
    parts = ModelConfig.from_json(model.config.to_dict()), model.state_dict()
    weights = place_weights(*parts, torch.device("cpu"), torch.float32)
    plain, fp8 = (Decoder(parts[0], weights, (np.arange(60, 76),), fp8=fp8) for fp8 in (False, True))
    assert fp8.styles(100) == (Style.FP8,)
    assert fp8.styles(1000) == (Style.FP8, Style.FP8_FUSED_GATE)
    hidden = torch.randn(40, 48) * torch.logspace(-2, 2, 40)[:, None]
    some = torch.tensor([3, 39])

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, row_scale: Tensor, column_scale: Tensor) -> Tensor:
        by = column_scale[-v.shape[1] * v.shape[2] :].view(v.shape[1:])
        attended = values_alone(layer, q, k, v * row_scale[:, None] * by)
        return quantise_heads(attended[some] if layer == 2 else attended, fp8.attended_scales(layer))

    wanted = plain.layers(hidden, values_alone)[some]
    apart, fused = (fp8.layers(hidden, attend, some, style) for style in fp8.styles(1000))
    torch.testing.assert_close(fused, apart, rtol=1e-3, atol=1e-3)
    assert (apart - wanted).norm() < 0.2 * wanted.norm()


def test_norms_of_the_families() -> None:
    assert make_decoder().q_norm(0).shape == make_decoder().k_norm(2).shape == (16,)
    assert make_decoder(family="llama").q_norm(0) is None
    assert make_decoder(family="qwen2").k_norm(0) is None


def test_no_gradients_are_tracked() -> None:
    model = make_model("qwen3", tie_word_embeddings=False)
    decoder = build_model(model.config.to_dict(), dict(model.named_parameters()), XGR).decoder
    assert not reference_forward(decoder, torch.arange(5)).requires_grad
