"""K-means in numpy: seeded, and with bounded memory whatever the number of points and codes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

MAX_ITERATIONS = 25
POINTS_PER_CODE = 256
"""Points that a codebook is trained on, per code: more hardly move the means."""
SEEDING_POINTS_PER_CODE = 16
"""Points among which k-means++ looks for the first means, per code: it visits them all once for every mean."""
_CHUNK_FLOATS = 1 << 24
"""Distances computed at a time: 64 MB."""


def train_codebook(points: FloatArray, num_codes: int, random: np.random.Generator) -> FloatArray:
    """Means of at most `num_codes` clusters of `points` [points, dim]: [codes found, dim]; fewer than asked for where
    there are fewer distinct points."""
    points = _sample(points, num_codes * POINTS_PER_CODE, random)
    means = _plus_plus(_sample(points, num_codes * SEEDING_POINTS_PER_CODE, random), num_codes, random)
    nearest: Codes = np.full(len(points), -1, np.int32)
    for _ in range(MAX_ITERATIONS):
        before = nearest
        nearest, distances = assign(points, means)
        if np.array_equal(nearest, before):
            break
        means = update_means(points, nearest, distances, means)
    return means


def assign(points: FloatArray, means: FloatArray) -> tuple[Codes, FloatArray]:
    """The nearest mean of each point and its squared distance, both [points]; the lower one of equals."""
    nearest = np.empty(len(points), np.int32)
    distances = np.empty(len(points), np.float32)
    chunk = max(1, _CHUNK_FLOATS // len(means))
    for start in range(0, len(points), chunk):
        squared = squared_distances(points[start : start + chunk], means)
        best = squared.argmin(axis=1)
        nearest[start : start + chunk] = best
        distances[start : start + chunk] = squared[np.arange(len(best)), best]
    return nearest, distances


def squared_distances(points: FloatArray, means: FloatArray) -> FloatArray:
    """[points, means]"""
    squared: FloatArray = points @ (-2 * means.T)
    squared += np.einsum("md,md->m", means, means)
    squared += np.einsum("pd,pd->p", points, points)[:, None]
    np.maximum(squared, 0, out=squared)
    return squared


def _sample(points: FloatArray, most: int, random: np.random.Generator) -> FloatArray:
    if len(points) <= most:
        return points
    return points[np.sort(random.choice(len(points), most, replace=False))]


def _plus_plus(points: FloatArray, num_codes: int, random: np.random.Generator) -> FloatArray:
    """k-means++: each next mean is a point drawn by its squared distance to the nearest mean so far."""
    chosen = [int(random.integers(len(points)))]
    nearest = squared_distances(points, points[chosen])[:, 0]
    nearest[chosen] = 0
    while len(chosen) < num_codes:
        cumulative = np.cumsum(nearest, dtype=np.float64)
        if cumulative[-1] <= 0:  # every distinct point is a mean already
            break
        point = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
        chosen.append(point)
        np.minimum(nearest, squared_distances(points, points[point : point + 1])[:, 0], out=nearest)
        nearest[point] = 0
    return points[chosen]


def update_means(points: FloatArray, nearest: Codes, distances: FloatArray, means: FloatArray) -> FloatArray:
    """The mean of each cluster; one that lost all its points takes one of the points farthest from their own mean."""
    sizes = np.bincount(nearest, minlength=len(means))
    sums = np.stack([np.bincount(nearest, column, len(means)) for column in points.T], axis=1)
    updated: FloatArray = (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(sizes == 0)
    updated[empty] = points[np.argsort(-distances, kind="stable")[: len(empty)]]
    return updated
