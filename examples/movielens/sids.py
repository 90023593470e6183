"""Semantic IDs from behaviour: PPMI-SVD item vectors of the training events, cut into codes by residual k-means."""

from __future__ import annotations

import numpy as np

from examples.movielens.data import Movie, MovieLens
from xgr_stream import Catalog

LEVELS = 3
CODES = 64
DIMENSIONS = 64

REACH = 10
"""Two movies occur together if one user rated them at most this many events apart."""


def build_catalog(data: MovieLens) -> Catalog:
    """Every movie of the 5-core with a semantic ID of its own, tags to filter by, and its popularity in training."""
    return Catalog.from_embeddings(
        [movie.item_id for movie in data.movies],
        item_vectors(data),
        levels=LEVELS,
        codes=CODES,
        unique=True,
        columns={
            "tags": [tags(movie) for movie in data.movies],
            "popularity": data.training_counts.astype(float).tolist(),
        },
    )


def tags(movie: Movie) -> list[str]:
    """Genres and decade, for example `["genre:Comedy", "decade:1990"]`."""
    genres = [f"genre:{genre}" for genre in movie.genres]
    return [*genres, f"decade:{movie.year[:3]}0"] if movie.year.isdigit() else genres


def item_vectors(data: MovieLens) -> np.ndarray:
    """[items, DIMENSIONS] float32: movies that the same people watch around the same time lie close.

    Truncated SVD of the positive pointwise mutual information of co-occurrence, each direction scaled by the root of
    its singular value.
    """
    together = _co_occurrence(data)
    totals = together.sum(axis=1)
    expected = np.outer(totals, totals) / totals.sum()
    ratio = np.divide(together, expected, out=np.ones_like(together), where=together > 0)
    information = np.log(np.maximum(ratio, 1.0))
    left, singular, _ = np.linalg.svd(information, hermitian=True)  # by eigenvalues: half the time
    return (left[:, :DIMENSIONS] * np.sqrt(singular[:DIMENSIONS])).astype(np.float32)


def _co_occurrence(data: MovieLens) -> np.ndarray:
    """[items, items]: how often two movies stand at most `REACH` events apart in one user's training events."""
    num_items = data.num_items
    pairs = [
        user.training[:-distance] * num_items + user.training[distance:]
        for user in data.users
        for distance in range(1, REACH + 1)
    ]
    counts = np.bincount(np.concatenate(pairs), minlength=num_items**2).reshape(num_items, num_items).astype(float)
    return counts + counts.T
