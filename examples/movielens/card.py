"""The model card that stands in a checkpoint's directory as README.md."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch

from examples.movielens.data import HELD_OUT, MovieLens
from examples.movielens.fit import Recipe
from xgr_stream import Engine, __version__
from xgr_stream.evaluation import Quality

CARD = """\
# xgr-stream MovieLens model ({recipe.name} recipe)

A Qwen3-shaped decoder over semantic-ID tokens: {shape.layers} layers, width {shape.hidden}, {parameters:,} parameters,
{shape.levels} levels of {shape.codes} codes, {recipe.window_events} events in context.

| test, full ranking, seen items removed | Recall@{k} | NDCG@{k} |
|---|---:|---:|
{rows}

The standard error of each Recall@{k} is about {error:.3f} ({users} users).

**Data.** MovieLens 100K, 5-core: {users} users, {items:,} movies, {events:,} events in time order (half of them share
their second with another of the same user; those stand in the file's order). F. M. Harper and J. A. Konstan, "The
MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. For research; neither the data nor what is derived from
it, this directory included, may be redistributed.

**Split.** Leave one out: each user's last {held_out} events are unseen in training, in the semantic IDs and in the
popularity. The last one is the test above, recommended from all events before it; the one before it is for validation.

**Semantic IDs.** PPMI-SVD of the training events' co-occurrence, residual k-means, last level reassigned so that every
movie has an ID of its own.

**Training.** `{command}`, seed {recipe.seed}, {recipe.epochs} epochs in {seconds:.0f} s on {threads} core(s), PyTorch
{torch}; AdamW, learning rate {recipe.learning_rate}, dropout {recipe.dropout}, label smoothing {recipe.smoothing},
average of the late weights.

**Evaluation.** By the engine that serves it, beam {beam}, normalizer `{normalizer}`, xgr-stream {version}:

    xgr-stream evaluate --k {k} --beam {beam} \\
      --model {path} --catalog {path}/catalog.parquet --sequences {path}/test.jsonl

Model version {model_version}, catalog version {catalog_version}.
"""


def write_card(
    folder: Path,
    path: Path,
    data: MovieLens,
    recipe: Recipe,
    engine: Engine,
    qualities: dict[str, Quality],
    *,
    command: str,
    seconds: float,
) -> None:
    """Write it into `folder`, for a checkpoint that will stand at `path`; `qualities` by method, this model's first."""
    own = next(iter(qualities.values()))
    rows = [f"| {method} | {found.recall:.4f} | {found.ndcg:.4f} |" for method, found in qualities.items()]
    if "SASRec" not in qualities:
        rows.append(f"| SASRec | not trained; added by `{command}` | |")
    text = CARD.format(
        recipe=recipe,
        shape=recipe.shape,
        parameters=sum(prod(shape) for shape in engine.model.config.tensor_shapes().values()),
        k=own.k,
        rows="\n".join(rows),
        error=own.recall_error,
        users=len(data.users),
        items=data.num_items,
        events=data.num_events,
        held_out=HELD_OUT,
        command=command,
        seconds=seconds,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        beam=engine.config.beam_width,
        normalizer=engine.normalizer,
        version=__version__,
        path=path,
        model_version=engine.version,
        catalog_version=engine.catalog.version,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
