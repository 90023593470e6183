"""What a recommender must beat, scored by the same code on the same split: popularity and item-kNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from examples.movielens.data import MovieLens
from xgr_stream.evaluation import Quality, rank_of

Scorer = Callable[[np.ndarray], np.ndarray]
"""A history, item indices oldest first [events] → a score per item [items]; higher is better."""


def popularity(data: MovieLens) -> Scorer:
    """Every user gets what was rated most in training."""
    counts = data.training_counts.astype(float)
    return lambda history: counts


def item_knn(data: MovieLens, *, recent: int = 10) -> Scorer:
    """The sum of an item's cosine similarities (by users in common) to the user's `recent` last items; the whole
    history does worse."""
    seen = np.zeros((len(data.users), data.num_items), np.float32)
    for row, user in enumerate(data.users):
        seen[row, user.training] = 1.0
    together = seen.T @ seen
    norms = np.sqrt(np.maximum(np.diag(together), 1.0))
    similarity = together / np.outer(norms, norms)
    np.fill_diagonal(similarity, 0.0)
    return lambda history: similarity[history[-recent:]].sum(axis=0)


def top_items(scores: np.ndarray, seen: Sequence[int] | np.ndarray, k: int) -> list[int]:
    """The k best items that are not in `seen`; equal scores in the catalog's order. `scores` [items]."""
    allowed = scores.astype(float)
    allowed[seen] = -np.inf
    return np.argsort(-allowed, kind="stable")[:k].tolist()


def quality(data: MovieLens, scorer: Scorer, k: int) -> Quality:
    """Recall and NDCG on every user's last event, from all events before it."""
    ranks = []
    for user in data.users:
        history, target = user.items[:-1], int(user.items[-1])
        ranks.append(rank_of(top_items(scorer(history), history, k), target))
    return Quality.of_ranks(ranks, k)
