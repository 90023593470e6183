"""Build the semantic IDs, train the decoder, measure it and write a checkpoint that the library serves.

python -m examples.movielens.train            # quick, into models/movielens
python -m examples.movielens.train --full     # the card's best figures, into models/movielens-full

The quick recipe takes about two minutes on two cores. SASRec, which the card compares with, takes two more; it comes
when the checkpoint is written already.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

from examples.movielens.baselines import item_knn, popularity, quality
from examples.movielens.card import write_card
from examples.movielens.data import MovieLens, load
from examples.movielens.fit import Recipe, fit
from examples.movielens.recipes import FULL, QUICK
from examples.movielens.sasrec import train_sasrec
from examples.movielens.sids import build_catalog
from xgr_stream import Catalog, Engine, EngineConfig
from xgr_stream.evaluation import Quality, UserSequence, evaluate
from xgr_stream.model import save_checkpoint

MODELS = Path("models")
K = 10
BEAM = 50


def checkpoint_path(recipe: Recipe) -> Path:
    return MODELS / ("movielens" if recipe == QUICK else f"movielens-{recipe.name}")


def is_trained(path: Path, recipe: Recipe) -> bool:
    """Whether `path` holds a finished checkpoint of exactly this recipe."""
    try:
        return bool(json.loads((path / "training.json").read_text(encoding="utf-8"))["recipe"] == _as_json(recipe))
    except (FileNotFoundError, ValueError, KeyError):
        return False


def train(data: MovieLens, recipe: Recipe, path: Path, command: str, *, sasrec: bool) -> dict[str, Quality]:
    """Write a checkpoint to `path`, whole or not at all; returns the test quality of each method, the model's first.

    `sasrec`: train that too, afterwards, and add its row to the card; without it the card says how to get the row.
    """
    started = time.perf_counter()
    catalog = build_catalog(data)
    print(f"semantic IDs of {catalog.num_items:,} movies in {time.perf_counter() - started:.1f} s")
    sids = np.array([catalog.sid(movie.item_id) for movie in data.movies])
    decoder = fit(data, sids, recipe)
    seconds = time.perf_counter() - started

    unfinished = path.with_name(path.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_checkpoint(unfinished, recipe.shape.config(), decoder.hugging_face_state(), _settings(recipe))
    catalog.save(unfinished / "catalog.parquet")
    _write_sequences(data, unfinished / "test.jsonl")
    engine, qualities = _measure(data, recipe, unfinished, catalog)

    def describe(folder: Path) -> None:
        write_card(folder, path, data, recipe, engine, qualities, command=command, seconds=seconds)
        _write_record(folder, recipe, qualities, seconds)

    describe(unfinished)
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)
    if sasrec:
        qualities["SASRec"] = quality(data, train_sasrec(data, recipe.seed), K)
        _show("SASRec", qualities["SASRec"])
        describe(path)
    return qualities


def _write_record(folder: Path, recipe: Recipe, qualities: dict[str, Quality], seconds: float) -> None:
    """What `is_trained` reads, with the figures of the card."""
    record = {
        "recipe": _as_json(recipe),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "quality": {method: dataclasses.asdict(found) for method, found in qualities.items()},
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _settings(recipe: Recipe) -> dict[str, object]:
    """The xgr.json: how events become tokens, and what the engine is to do with them."""
    return {
        "format": 1,
        "codes": [recipe.shape.codes] * recipe.shape.levels,
        "item_tokens": {"offset": 0},
        "normalizer": "level",
        "window": {"max_events": recipe.window_events},
    }


def _write_sequences(data: MovieLens, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for user in data.users:
            file.write(json.dumps({"user_id": user.user_id, "items": data.item_ids(user.items)}) + "\n")


def _measure(data: MovieLens, recipe: Recipe, path: Path, catalog: Catalog) -> tuple[Engine, dict[str, Quality]]:
    engine = Engine.load(path, catalog, config=EngineConfig(beam_width=BEAM))
    sequences = [UserSequence(user.user_id, tuple(data.item_ids(user.items))) for user in data.users]
    with tqdm(total=len(sequences), desc="evaluating", unit="user", dynamic_ncols=True, mininterval=0.5) as progress:
        ranks = evaluate(engine, sequences, k=K, beam_width=BEAM, on_batch=progress.update)
    engine.check_integrity()
    qualities = {
        "**this model**": Quality.of_ranks(ranks, K),
        "popularity": quality(data, popularity(data), K),
        "item-kNN": quality(data, item_knn(data), K),
    }
    for method, found in qualities.items():
        _show(method, found)
    return engine, qualities


def _show(method: str, found: Quality) -> None:
    print(f"{method.strip('*'):<12} Recall@{K} {found.recall:.4f}   NDCG@{K} {found.ndcg:.4f}", flush=True)


def _as_json(recipe: Recipe) -> dict[str, object]:
    as_json: dict[str, object] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return as_json


@click.command(context_settings={"show_default": True})
@click.option("--full", is_flag=True, help="The longer recipe, with the best figures.")
@click.option("--seed", default=QUICK.seed)
@click.option("--threads", type=click.IntRange(1), default=min(2, torch.get_num_threads()))
@click.option("--sasrec/--no-sasrec", default=True, help="Train SASRec too, for the card.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Default: below models/.")
def main(full: bool, seed: int, threads: int, sasrec: bool, output: Path | None) -> None:
    """Train a generative recommender on MovieLens 100K and write it with its catalog and card."""
    torch.set_num_threads(threads)
    recipe = FULL if full else QUICK
    path = output or checkpoint_path(recipe)
    recipe = dataclasses.replace(recipe, seed=seed)
    command = f"python -m examples.movielens.train{' --full' if full else ''} --seed {seed} --threads {threads}"
    train(load(), recipe, path, command, sasrec=sasrec)
    click.echo(f"written to {path}, the card is {path / 'README.md'}")


if __name__ == "__main__":
    main()
