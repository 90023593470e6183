"""`xgr-stream bench kv-cache`: users for a GB in each dtype of the KV cache, and how far the answers agree."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import get_args

import click
import torch

from xgr_stream.cli.benches.options import Output, Setting, output_options, setting_options
from xgr_stream.cli.benches.report import start
from xgr_stream.cli.benches.subject import Subject, Users, check_answers, requests_of
from xgr_stream.config import KvCacheDtype
from xgr_stream.engine import Engine
from xgr_stream.errors import ConfigError, EngineError
from xgr_stream.evaluation import overlap
from xgr_stream.history import HistoryView
from xgr_stream.types import MAX_BEAM_WIDTH, CacheState, RecommendResponse

COLUMNS = {
    "kv_cache_dtype": "KV cache",
    "user_bytes": "bytes a user",
    "users_per_gb": "users a GB",
    "ratio": "of the first",
    "users_warm": "users warm",
    "cache_gb": "in GB",
    "warm_s": "s to warm",
    "overlap": "same of the best k",
    "same_first": "same best item",
    "score_difference": "score difference",
}
WARMED_AT_ONCE = 64


@click.command()
@setting_options
@click.option("--context", type=click.IntRange(1), default=1000, show_default=True, help="Tokens in each context.")
@click.option("--users", type=click.IntRange(1), default=64, show_default=True, help="To be warm, as far as they fit.")
@click.option("--asked", type=click.IntRange(1), default=64, show_default=True, help="Of these, who are asked for.")
@click.option("--beam", type=click.IntRange(1, MAX_BEAM_WIDTH), default=256, show_default=True, help="Beam width.")
@click.option("--k", type=click.IntRange(1), default=50, show_default=True, help="Items that are compared.")
@output_options
def kv_cache(setting: Setting, context: int, users: int, asked: int, beam: int, k: int, output: Output) -> None:
    """Warm users with random histories, all of them, and answer some; with the KV cache as the model computes, then in
    FP8 (--kv-cache-dtype: one of them alone).

    Bytes are those of the pages and of the last hidden states; users who have no room are evicted, and not counted as
    warm.
    """
    if k > beam:
        raise ConfigError(f"--beam must be at least --k ({k}), not {beam}")
    subject = Subject(setting)
    report = start("kv-cache", COLUMNS, subject.description(), output)
    dtypes: Sequence[KvCacheDtype] = (setting.kv_cache_dtype,) if setting.kv_cache_dtype else get_args(KvCacheDtype)
    drawn = subject.users(users, context)
    first: tuple[float, list[RecommendResponse]] | None = None
    for dtype in dtypes:
        engine = subject.engine(drawn, beam=beam, kv_cache_dtype=dtype)
        row, answers = _measure(engine, drawn, min(asked, users), beam=beam, k=k)
        per_gb = 1e9 / _user_bytes(engine, drawn)
        row |= {"kv_cache_dtype": f"{dtype} ({str(engine.cache.pool.k.dtype).removeprefix('torch.')})"}
        row |= {"user_bytes": round(1e9 / per_gb), "users_per_gb": per_gb}
        if first is None:
            first = per_gb, answers
        else:
            row |= {"ratio": per_gb / first[0], **_agreement(first[1], answers)}
        report.add(row)
        del engine
    report.finish(output)


def _user_bytes(engine: Engine, users: Users) -> float:
    """Of one user's pages, and of the hidden states that come with them."""
    pool, hidden = engine.cache.pool, engine.cache.hidden
    per_page = pool.bytes_per_page + hidden.nbytes / pool.num_pages
    return pool.pages_for(users.context) * per_page


def _measure(
    engine: Engine, users: Users, asked: int, *, beam: int, k: int
) -> tuple[dict[str, object], list[RecommendResponse]]:
    """How many are warm, and what the last of them are answered."""
    views = users.steps[0]
    began = perf_counter()
    for at in range(0, len(views), WARMED_AT_ONCE):
        engine.warm(views[at : at + WARMED_AT_ONCE])
    if engine.cache.hidden.is_cuda:
        torch.cuda.synchronize()
    row: dict[str, object] = {"warm_s": perf_counter() - began, "users_warm": engine.stats().users_warm}
    row["cache_gb"] = (engine.stats().bytes_budget + engine.cache.hidden.nbytes) / 1e9
    answers: list[RecommendResponse] = []
    for at in range(len(views) - asked, len(views)):
        answers += _answer(engine, views[at : at + 1], beam=beam, k=k)
    engine.check_integrity()
    return row, answers


def _answer(engine: Engine, views: Sequence[HistoryView], *, beam: int, k: int) -> Sequence[RecommendResponse]:
    responses = check_answers(engine.answer(requests_of(views, beam=beam, k=k)))
    for response in responses:
        if response.cache is not CacheState.WARM:
            raise EngineError(f"the users asked for last must be warm, not {response.cache}: give fewer --asked")
    return responses


def _agreement(answers: Sequence[RecommendResponse], others: Sequence[RecommendResponse]) -> dict[str, object]:
    """How far two engines agree; `score_difference`: the mean of items that both have."""
    ids, other_ids = ([[item.item_id for item in one.items] for one in many] for many in (answers, others))
    differences = []
    for one, other in zip(answers, others, strict=True):
        scores = {item.item_id: item.score for item in other.items}
        differences += [abs(i.score - scores[i.item_id]) for i in one.items if i.item_id in scores]
    return {
        "overlap": overlap(ids, other_ids),
        "same_first": sum(a[:1] == b[:1] for a, b in zip(ids, other_ids, strict=True)) / len(ids),
        "score_difference": sum(differences) / max(1, len(differences)),
    }
