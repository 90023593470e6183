from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model.checkpoints import XGR, make_model, save_model
from xgr_stream.errors import CheckpointError
from xgr_stream.model import load_model
from xgr_stream.model.config import ModelConfig
from xgr_stream.model.fields import read_json
from xgr_stream.model.weights import check_tensors, place_weights, read_tensors


def edit(path: Path, **tensors: Tensor | None) -> None:
    """Replaces tensors of a saved checkpoint (`.` written `__`), or removes those that are None."""
    file = path / "model.safetensors"
    held = load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, file)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "model__layers__1__self_attn__k_proj__weight",
            None,
            r"lacks tensor model.layers.1.self_attn.k_proj.weight; config.json asks for it with shape \(32, 48\)",
        ),
        (
            "model__layers__2__mlp__down_proj__weight",
            torch.zeros(48, 70),
            r"down_proj.weight has shape \(48, 70\) in the checkpoint; config.json asks for \(48, 72\)",
        ),
        ("model__norm__weight", torch.ones(48, dtype=torch.int8), "model.norm.weight must be of float32, float16"),
        ("model__norm__weight", torch.full((48,), torch.nan), "model.norm.weight must hold finite numbers, not NaN"),
        ("model__norm__weight", torch.full((48,), torch.inf), "model.norm.weight must hold finite numbers, not NaN"),
        ("model__norm__bias", torch.ones(48), r"holds tensor model.norm.bias of shape \(48,\), for which a qwen3"),
        ("lm_head__weight", torch.ones(101, 48), "holds tensor lm_head.weight of shape"),
    ],
    ids=["missing", "shape", "dtype", "NaN", "infinity", "extra", "another head although tied"],
)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, tensor: Tensor | None, message: str) -> None:
    save_model(tmp_path, tie_word_embeddings=True)
    edit(tmp_path, **{name: tensor})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, item_tokens=XGR)


def test_tensors_that_say_nothing_new_are_ignored(tmp_path: Path) -> None:
    model = save_model(tmp_path, "llama", tie_word_embeddings=True)
    version = load_model(tmp_path, item_tokens=XGR).version
    edit(
        tmp_path,
        lm_head__weight=model.get_input_embeddings().weight.detach().clone(),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(6),
    )
    assert load_model(tmp_path, item_tokens=XGR).version == version


def test_the_version_is_of_the_content(tmp_path: Path) -> None:
    model = make_model("qwen3")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    one, shards = (load_model(tmp_path / name, item_tokens=XGR).version for name in ("one", "shards"))
    assert one == shards
    assert len(one) == 16
    assert int(one, 16) >= 0
    assert load_model(tmp_path / "one", dtype="bfloat16", item_tokens=XGR).version == one
    assert load_model(tmp_path / "one", item_tokens=XGR | {"tail": [1]}).version != one
    edit(tmp_path / "one", model__norm__weight=torch.ones(48))
    assert load_model(tmp_path / "one", item_tokens=XGR).version != one


def test_a_model_outlives_its_files(tmp_path: Path) -> None:
    save_model(tmp_path)
    model = load_model(tmp_path, item_tokens=XGR)
    hidden = torch.randn(3, 48)
    before = model.decoder.vocabulary_logits(hidden)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as overwritten:
        overwritten.write(bytes(file.stat().st_size))
    assert torch.equal(model.decoder.vocabulary_logits(hidden), before)


@pytest.mark.parametrize(("dtype", "by_column"), [(torch.float32, True), (torch.bfloat16, False)])
def test_small_projections_lie_column_by_column_on_a_cpu(tmp_path: Path, dtype: torch.dtype, by_column: bool) -> None:
    save_model(tmp_path)
    config = ModelConfig.from_json(read_json(tmp_path / "config.json"))
    tensors = check_tensors(config, read_tensors(tmp_path))
    for layer in place_weights(config, tensors, torch.device("cpu"), dtype).layers:
        for projection in (layer.qkv, layer.output, layer.gate_up, layer.down):
            assert projection.t().is_contiguous() is by_column


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights .* save_pretrained\(\) it as safetensors"):
        load_model(tmp_path, item_tokens=XGR)


def test_no_weights(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"must hold model.safetensors, or model.safetensors.index.json"):
        load_model(tmp_path, item_tokens=XGR)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8 + b"{}", b"not safetensors at all"])
def test_damaged_weights(tmp_path: Path, damage: bytes) -> None:
    save_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"cannot read .*model.safetensors as safetensors"):
        load_model(tmp_path, item_tokens=XGR)


def test_truncated_weights(tmp_path: Path) -> None:
    save_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot read .*model.safetensors as safetensors"):
        load_model(tmp_path, item_tokens=XGR)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("gone.safetensors", r"cannot read .*gone.safetensors"),
        ("../model.safetensors", "must be the name of a file beside it, not '../model.safetensors'"),
        ("model-00001-of-{shards}.safetensors", "tensor model.norm.weight is not in model-00001"),
        (3, "must be the name of a file beside it, not 3"),
    ],
)
def test_damaged_index(tmp_path: Path, entry: Any, message: str) -> None:
    make_model("qwen3").save_pretrained(tmp_path, max_shard_size="20KB")
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    last = index["weight_map"]["model.norm.weight"].rpartition("-")[2].removesuffix(".safetensors")
    index["weight_map"]["model.norm.weight"] = entry.format(shards=last) if isinstance(entry, str) else entry
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, item_tokens=XGR)
