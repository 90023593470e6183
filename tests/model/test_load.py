from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.model.checkpoints import FAMILIES, XGR, make_model, save_model, transformers_logits
from tests.model.reference import reference_forward
from xgr_stream.errors import CheckpointError, ConfigError
from xgr_stream.model import build_model, load_model, save_checkpoint

TOKENS = torch.randint(0, 101, (40,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_save_transformers_loads(tmp_path: Path, family: str, tied: bool) -> None:
    model = make_model(family, tie_word_embeddings=tied)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    save_checkpoint(tmp_path, model.config.to_dict(), tensors, XGR)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "xgr.json"]
    expected = transformers_logits(model, TOKENS)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(transformers_logits(oracle, TOKENS), expected)
    torch.testing.assert_close(reference_forward(load_model(tmp_path).decoder, TOKENS), expected, atol=1e-4, rtol=0)


def test_save_refuses_what_would_not_load(tmp_path: Path) -> None:
    model = make_model("qwen3", tie_word_embeddings=False)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(CheckpointError, match=r"lacks tensor lm_head.weight"):
        save_checkpoint(tmp_path / "new", model.config.to_dict(), tensors, XGR)
    with pytest.raises(CheckpointError, match="beyond the checkpoint's vocabulary"):
        save_checkpoint(tmp_path / "new", model.config.to_dict(), model.state_dict(), XGR | {"prompt": [101]})
    window = {"window": {"max_events": 100_000}}
    with pytest.raises(CheckpointError, match="a window of 100000 events takes up to"):
        save_checkpoint(tmp_path / "new", model.config.to_dict(), model.state_dict(), XGR | window)
    assert not (tmp_path / "new").exists()


def test_build_model_in_memory(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    built = build_model(model.config.to_dict(), model.state_dict(), XGR)
    assert built.version == load_model(tmp_path, item_tokens=XGR).version


def test_settings_come_from_the_directory_or_the_argument(tmp_path: Path) -> None:
    save_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold an xgr.json .* or the same settings .* item_tokens="):
        load_model(tmp_path)
    (tmp_path / "xgr.json").write_text(json.dumps(XGR | {"normalizer": "legal"}))
    assert load_model(tmp_path).settings.normalizer == "legal"
    assert load_model(tmp_path, item_tokens=XGR).settings.normalizer is None


def test_names_are_looked_up_in_the_directory(tmp_path: Path) -> None:
    save_model(tmp_path)
    vocabulary = {f"<{level}_{code}>": 90 - 10 * i - code for i, level in enumerate("ab") for code in range(5)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    pattern = {"pattern": "<{level}_{code}>", "levels": ["a", "b"]}
    model = load_model(tmp_path, item_tokens={"codes": [5, 5], "item_tokens": pattern})
    assert model.tokens.token_ids[1].tolist() == [80, 79, 78, 77, 76]


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 100_000, '{"codes": 1e999}', "9" * 5000])
@pytest.mark.parametrize("file", ["config.json", "xgr.json"])
def test_damaged_json(tmp_path: Path, file: str, text: str) -> None:
    save_model(tmp_path)
    (tmp_path / "xgr.json").write_text(json.dumps(XGR))
    (tmp_path / file).write_text(text)
    with pytest.raises(CheckpointError, match=file):
        load_model(tmp_path)


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be a Hugging Face directory with a config.json"):
        load_model(tmp_path / "nowhere")


def test_unknown_dtype(tmp_path: Path) -> None:
    save_model(tmp_path)
    with pytest.raises(ConfigError, match="dtype must be None or one of float32, bfloat16, float16, not 'int8'"):
        load_model(tmp_path, dtype="int8", item_tokens=XGR)


@pytest.mark.parametrize("device", ["banana", "CUDA", "mps", "meta", "cuda:99"])
def test_unknown_device(tmp_path: Path, device: str) -> None:
    save_model(tmp_path)
    with pytest.raises(ConfigError, match=rf"device must be 'cpu', or 'cuda' or .* the \d+ .* not '{device}': "):
        load_model(tmp_path, device=device, item_tokens=XGR)


def test_fp8_is_refused_in_float16(tmp_path: Path) -> None:
    save_model(tmp_path)
    with pytest.raises(ConfigError, match="dtype must be bfloat16 or float32 with fp8, not float16"):
        load_model(tmp_path, dtype="float16", fp8=True, item_tokens=XGR)


def test_fp8_is_refused_for_sizes_that_have_no_product(tmp_path: Path) -> None:
    save_model(tmp_path, intermediate_size=72)
    with pytest.raises(ConfigError, match=r"and an MLP of multiples of 16, not 48, 64, 128, 72"):
        load_model(tmp_path, fp8=True, item_tokens=XGR)


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = make_model("qwen3", tie_word_embeddings=False)
    tensors = model.state_dict()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_checkpoint(tmp_path, model.config.to_dict(), tensors, XGR)
    assert load_model(tmp_path).version == build_model(model.config.to_dict(), tensors, XGR).version


def test_the_window_must_fit_the_positions(tmp_path: Path) -> None:
    save_model(tmp_path, max_position_embeddings=32)
    load_model(tmp_path, item_tokens=XGR | {"window": {"max_events": 10}})
    with pytest.raises(CheckpointError, match=r"a window of 11 events takes up to 35 tokens; .* is 32"):
        load_model(tmp_path, item_tokens=XGR | {"window": {"max_events": 11}})
