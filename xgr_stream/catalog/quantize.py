"""Semantic IDs from item embeddings: residual k-means, one codebook per level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xgr_stream.catalog.kmeans import Codes, FloatArray, assign, squared_distances, train_codebook
from xgr_stream.errors import CatalogError

_LARGEST = 1e15
"""Squares of differences of such numbers, summed over dimensions, stay finite in float32."""


def residual_kmeans(
    embeddings: npt.ArrayLike, codes: Sequence[int], *, seed: int = 0, unique: bool = False, items: int | None = None
) -> npt.NDArray[np.int32]:
    """SIDs [items, levels] of `embeddings` [items, dim]: each level clusters what the levels before left over.

    Near items may get the same SID. With `unique`, items that share all codes but the last are given different last
    codes, each the nearest that is free; `CatalogError` if there are more such items than last codes. `items`: how many
    there must be. The same input and seed give the same SIDs on the same machine.
    """
    residual = _checked(embeddings)
    if items not in (None, len(residual)):
        raise CatalogError(f"embeddings have {len(residual)} rows, expected one for each of the {items} items")
    if not codes:
        raise CatalogError(f"codes is {codes!r}, expected the number of codes of at least 1 level")
    random = np.random.default_rng(seed)
    residual -= residual.mean(axis=0)
    sids = np.empty((len(residual), len(codes)), np.int32)
    for level, num_codes in enumerate(codes):
        if num_codes < 1:
            raise CatalogError(f"codes of level {level} is {num_codes!r}, expected at least 1")
        means = train_codebook(residual, num_codes, random)
        sids[:, level], distances = assign(residual, means)
        if level < len(codes) - 1:
            residual -= means[sids[:, level]]
        elif unique:
            _separate(sids, residual, distances, means, num_codes)
    return sids


def _checked(embeddings: npt.ArrayLike) -> FloatArray:
    """A copy in float32, [items, dim]."""
    if isinstance(embeddings, np.ndarray) and embeddings.dtype.kind not in "biufO":
        raise CatalogError(f"embeddings are {embeddings.dtype}, expected real numbers")
    try:
        with np.errstate(over="ignore"):
            array = np.array(embeddings, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise CatalogError(f"embeddings cannot be read as numbers, expected [items, dim]: {error}") from error
    if array.ndim != 2 or 0 in array.shape:
        raise CatalogError(f"embeddings have shape {array.shape}, expected [items, dim] with at least 1 of each")
    finite = np.abs(array) < _LARGEST  # False for NaN
    if not finite.all():
        row, column = divmod(int(np.argmin(finite)), array.shape[1])
        raise CatalogError(
            f"embeddings[{row}, {column}] is {array[row, column]}, expected a finite number below {_LARGEST:g}"
        )
    return array


def _separate(sids: Codes, residual: FloatArray, distances: FloatArray, means: FloatArray, num_codes: int) -> None:
    """Give items that share all codes but the last different last codes. Mutates `sids`.

    `residual` [items, dim] is what the last level clustered, `distances` [items] how far each is from its mean. The
    nearest item of a code keeps it; the others, nearest first, take the nearest code that is free.
    """
    order = np.lexsort((distances, *sids[:, -2::-1].T)) if sids.shape[1] > 1 else np.argsort(distances, kind="stable")
    prefixes = sids[order, :-1]
    starts = np.flatnonzero(np.append(True, (prefixes[1:] != prefixes[:-1]).any(axis=1)))
    for start, end in zip(starts, np.append(starts[1:], len(sids)), strict=True):
        rows = order[start:end]
        if len(rows) > num_codes:
            raise CatalogError(
                f"{len(rows)} items share the codes {tuple(prefixes[start].tolist())}, but the last level has "
                f"{num_codes} codes: unique SIDs need more codes or levels"
            )
        kept, first = np.unique(sids[rows, -1], return_index=True)
        moved = np.delete(rows, first)
        if len(moved) == 0:
            continue
        costs = np.full((len(moved), num_codes), np.finfo(np.float32).max)  # codes that training left unused: last
        costs[:, : len(means)] = squared_distances(residual[moved], means)
        costs[:, kept] = np.inf
        for row, cost in zip(moved, costs, strict=True):
            sids[row, -1] = code = int(cost.argmin())
            costs[:, code] = np.inf
