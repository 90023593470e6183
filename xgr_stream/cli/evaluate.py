"""`xgr-stream evaluate`."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import click
from tqdm import tqdm

from xgr_stream import __version__
from xgr_stream.cli.cache import kv_cache_dtype_option
from xgr_stream.config import CacheConfig, EngineConfig, KvCacheDtype
from xgr_stream.engine import Engine
from xgr_stream.evaluation import Quality, rank_of, read_sequences, recommend, whole_histories
from xgr_stream.evaluation import overlap as share_of


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--catalog", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option(
    "--sequences",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Parquet, CSV or JSON Lines: user_id, items (oldest first; the last is the target), optionally actions.",
)
@click.option("--k", type=click.IntRange(1), default=10, help="Length of a recommendation.")
@click.option("--beam", type=click.IntRange(1), default=50, help="Beam width, at least k.")
@click.option(
    "--normalizer",
    type=click.Choice(["level", "vocabulary", "legal"]),
    help="How scores are normalized; the checkpoint's own by default.",
)
@click.option("--exclude-seen/--keep-seen", default=True, help="Whether items of the history may be recommended.")
@click.option("--device", default="cpu")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="What the model computes in.  [default: bfloat16 on a GPU, else float32]",
)
@click.option("--fp8", is_flag=True, help="Weights of the products in FP8, on a GPU.")
@kv_cache_dtype_option
@click.option(
    "--overlap",
    is_flag=True,
    help="With --fp8 or --kv-cache-dtype fp8: recommend without, too, and say how many of the best k are the same.",
)
def evaluate(
    model: Path,
    catalog: Path,
    sequences: Path,
    k: int,
    beam: int,
    normalizer: str | None,
    exclude_seen: bool,
    device: str,
    dtype: str | None,
    fp8: bool,
    kv_cache_dtype: KvCacheDtype,
    overlap: bool,
) -> None:
    """Recall and NDCG of a checkpoint: recommend from each sequence's history, look for its last item.

    Prints a table, then one line of JSON with the same figures and what they were computed from.
    """
    config = EngineConfig(
        beam_width=beam,
        normalizer=normalizer,  # type: ignore[arg-type]
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        fp8=fp8,
        cache=CacheConfig(kv_cache_dtype=kv_cache_dtype),
    )
    if overlap and kv_cache_dtype == "auto" and not fp8:
        raise click.UsageError("--overlap compares --fp8 or --kv-cache-dtype fp8 with neither, not neither with itself")
    engine = Engine.load(model, catalog, config=config, history=whole_histories())
    users = read_sequences(sequences)
    started = time.perf_counter()

    def lists(engine: Engine) -> list[list[str]]:
        with tqdm(total=len(users), desc="evaluating", unit="user", disable=None) as progress:
            found = recommend(engine, users, k=k, beam_width=beam, exclude_seen=exclude_seen, on_batch=progress.update)
        engine.check_integrity()
        return found

    recommended = lists(engine)
    quality = Quality.of_ranks([rank_of(own, user.target) for own, user in zip(recommended, users, strict=True)], k)
    shared = None
    if overlap:
        whole = replace(config, fp8=False, cache=CacheConfig())
        other = Engine.load(model if fp8 else engine.model, engine.catalog, config=whole, history=whole_histories())
        shared = share_of(recommended, lists(other))
    unknown = sum(engine.catalog.row(user.target) is None for user in users)
    click.echo(f"Recall@{k}   {quality.recall:.4f}  ± {quality.recall_error:.4f} (standard error)")
    click.echo(f"NDCG@{k}     {quality.ndcg:.4f}")
    if shared is not None:
        click.echo(f"overlap     {shared:.4f} of the best {k} are those without FP8")
    click.echo(f"users       {quality.users:,}, of which {unknown:,} with a target that the catalog does not hold")
    click.echo(f"scored by   beam {beam}, normalizer {engine.normalizer}, seen items {_kept(exclude_seen)}")
    figures = {
        "recall": quality.recall,
        "recall_standard_error": quality.recall_error,
        "ndcg": quality.ndcg,
        "k": k,
        "beam_width": beam,
        "normalizer": engine.normalizer,
        "exclude_seen": exclude_seen,
        "dtype": str(engine.model.decoder.dtype).removeprefix("torch."),
        "fp8": fp8,
        "kv_cache_dtype": kv_cache_dtype,
        "overlap": shared,
        "users": quality.users,
        "unknown_targets": unknown,
        "max_events": engine.window.max_events,
        "model_version": engine.version,
        "catalog_version": engine.catalog.version,
        "xgr_stream_version": __version__,
        "seconds": round(time.perf_counter() - started, 2),
    }
    click.echo(json.dumps(figures))


def _kept(exclude_seen: bool) -> str:
    return "removed" if exclude_seen else "kept"
