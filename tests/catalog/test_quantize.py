"""Semantic IDs from embeddings."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xgr_stream.catalog import Catalog, kmeans
from xgr_stream.catalog.quantize import residual_kmeans
from xgr_stream.errors import CatalogError


def clustered(num_items: int, dim: int = 8, seed: int = 0) -> npt.NDArray[np.float64]:
    """[items, dim]: five far clusters of near points."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(5, dim)) * 20
    return centres[np.arange(num_items) % 5] + random.normal(size=(num_items, dim))


def test_far_clusters_get_a_first_code_each() -> None:
    first = residual_kmeans(clustered(60), (5, 4))[:, 0]
    assert len(np.unique(first)) == 5
    assert all(len(np.unique(first[cluster::5])) == 1 for cluster in range(5))


def test_more_levels_leave_a_smaller_residual() -> None:
    """Items that share more codes are nearer to each other."""
    embeddings = clustered(300)
    sids = residual_kmeans(embeddings, (5, 8, 8))
    spreads = []
    for level in range(1, 4):
        _, group = np.unique(sids[:, :level], axis=0, return_inverse=True)
        means = np.stack([embeddings[group == one].mean(axis=0) for one in range(group.max() + 1)])
        spreads.append(np.square(embeddings - means[group]).sum())
    assert spreads[0] > 1.5 * spreads[1]
    assert spreads[1] > 1.5 * spreads[2]


def test_levels_and_codes_may_be_any() -> None:
    sids = residual_kmeans(clustered(100), (3, 1, 7, 2))
    assert sids.shape == (100, 4)
    assert (sids.max(axis=0) < (3, 1, 7, 2)).all()
    assert sids.min() == 0


def test_the_same_seed_gives_the_same_sids() -> None:
    embeddings = clustered(200)
    assert np.array_equal(residual_kmeans(embeddings, (8, 8), seed=3), residual_kmeans(embeddings, (8, 8), seed=3))
    assert not np.array_equal(residual_kmeans(embeddings, (8, 8), seed=3), residual_kmeans(embeddings, (8, 8), seed=4))


def test_the_input_is_left_as_it_was() -> None:
    embeddings = clustered(50).astype(np.float32)
    before = embeddings.copy()
    residual_kmeans(embeddings, (4, 64), unique=True)
    assert np.array_equal(embeddings, before)


def test_equal_embeddings_collide_and_share_a_leaf() -> None:
    embeddings = np.repeat(clustered(10), 3, axis=0)
    catalog = Catalog.from_embeddings([f"item-{i}" for i in range(30)], embeddings, levels=2, codes=16)
    assert catalog.codes == (16, 16)
    assert catalog.trie.num_leaves <= 10
    assert catalog.sid("item-0") == catalog.sid("item-2")


@pytest.mark.parametrize("codes", [(16,), (2, 16), (2, 3, 16)])
def test_unique_sids_are_unique(codes: tuple[int, ...]) -> None:
    embeddings = np.repeat(clustered(4), 4, axis=0)
    sids = residual_kmeans(embeddings, codes, unique=True)
    assert len(np.unique(sids, axis=0)) == 16
    assert (sids < codes).all()
    assert np.array_equal(sids[:, :-1], residual_kmeans(embeddings, codes)[:, :-1])


def test_unique_moves_only_items_that_collide() -> None:
    """The item nearest to its mean keeps its code."""
    embeddings = clustered(200, seed=1)
    shared, unique = (residual_kmeans(embeddings, (4, 80), unique=unique) for unique in (False, True))
    moved = (shared != unique).any(axis=1)
    assert 0 < moved.sum() == 200 - len(np.unique(shared, axis=0))


def test_too_few_codes_for_unique_sids_are_refused() -> None:
    with pytest.raises(CatalogError, match=re.escape("5 items share the codes (0,), but the last level has 4 codes")):
        residual_kmeans(np.ones((5, 3)), (2, 4), unique=True)


def test_chunks_and_samples_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    points, means = clustered(97).astype(np.float32), clustered(7, seed=2).astype(np.float32)
    nearest, distances = kmeans.assign(points, means)
    monkeypatch.setattr(kmeans, "_CHUNK_FLOATS", 20)
    chunked, chunked_distances = kmeans.assign(points, means)
    assert np.array_equal(nearest, chunked)
    np.testing.assert_allclose(distances, chunked_distances, rtol=1e-5)
    expected = np.square(points[:, None] - means[None]).sum(axis=2)
    assert np.array_equal(nearest, expected.argmin(axis=1))
    monkeypatch.setattr(kmeans, "POINTS_PER_CODE", 4)
    assert len(np.unique(residual_kmeans(points, (5,)))) == 5


def test_a_cluster_that_loses_all_points_takes_the_farthest_one() -> None:
    points = np.array([[0.0], [1.0], [10.0]], np.float32)
    means = np.array([[0.5], [100.0]], np.float32)
    nearest, distances = kmeans.assign(points, means)
    updated = kmeans.update_means(points, nearest, distances, means)
    assert updated[1] == 10.0


def test_attributes_come_along() -> None:
    catalog = Catalog.from_embeddings(
        ["a", "b", "c"],
        clustered(3),
        levels=2,
        codes=(4, 2),
        columns={"tags": [["x"], [], ["y"]], "popularity": [1, 5, 3], "available": [True, True, False]},
    )
    assert catalog.codes == (4, 2)
    assert catalog.live_counts()[0].tolist() == [2]


def test_codes_may_be_numpys() -> None:
    embeddings = clustered(3)
    plain = Catalog.from_embeddings(["a", "b", "c"], embeddings, levels=2, codes=4, seed=1)
    for codes in (np.int64(4), [4, np.int64(4)], np.array([4, 4])):
        numpys: Any = {"levels": np.int64(2), "codes": codes, "seed": np.int32(1)}
        assert Catalog.from_embeddings(["a", "b", "c"], embeddings, **numpys).version == plain.version


@pytest.mark.parametrize(
    ("item_ids", "embeddings", "levels", "codes", "message"),
    [
        (["a", "b"], [[1.0, 2.0], [3.0, float("nan")]], 1, 2, "embeddings[1, 1] is nan, expected a finite number"),
        (["a"], [[float("-inf")]], 1, 2, "embeddings[0, 0] is -inf, expected a finite number"),
        (["a"], [[1e30]], 1, 2, "embeddings[0, 0] is 1.0000000150474662e+30, expected a finite number below 1e+15"),
        (["a", "b"], [[1.0], [1.0, 2.0]], 1, 2, "embeddings cannot be read as numbers, expected [items, dim]"),
        (["a"], [["x"]], 1, 2, "embeddings cannot be read as numbers, expected [items, dim]"),
        (["a"], [1.0, 2.0], 1, 2, "embeddings have shape (2,), expected [items, dim] with at least 1 of each"),
        ([], np.zeros((0, 4)), 1, 2, "embeddings have shape (0, 4), expected [items, dim] with at least 1 of each"),
        (["a"], [[1.0], [2.0]], 1, 2, "embeddings have 2 rows, expected one for each of the 1 items"),
        (["a"], [[1.0]], 2, (4, 4, 4), "codes is (4, 4, 4), expected one number or 2, as many as levels"),
        (["a"], [[1.0]], 2, (4, 0), "codes of level 1 is 0, expected an integer from 1 to 1048576"),
        (["a"], [[1.0]], 0, 4, "levels is 0, expected an integer of at least 1"),
        (["a"], [[1.0]], True, 4, "levels is True, expected an integer of at least 1"),
        (["a"], [[1.0]], "2", 4, "levels is '2', expected an integer of at least 1"),
        (["a"], [[1.0]], 2, "44", "codes is '44', expected an integer or a sequence of them, one for each level"),
        (["a"], [[1.0]], 2, 4.0, "codes is 4.0, expected an integer or a sequence of them, one for each level"),
        (["a"], [[1.0]], 2, (4, 4.0), "codes of level 1 is 4.0, expected an integer from 1 to 1048576"),
        (["a"], [[1.0]], 2, None, "codes is None, expected an integer or a sequence of them, one for each level"),
        (["a", "a"], [[1.0], [2.0]], 1, 4, "item_id 'a' occurs 2 times"),
    ],
)
def test_wrong_input_is_refused_by_name(item_ids: Any, embeddings: Any, levels: int, codes: Any, message: str) -> None:
    with pytest.raises(CatalogError, match=re.escape(message)):
        Catalog.from_embeddings(item_ids, embeddings, levels=levels, codes=codes)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, None])
def test_a_seed_is_an_integer_that_is_not_negative(seed: Any) -> None:
    with pytest.raises(CatalogError, match=f"seed is {seed!r}, expected an integer of at least 0"):
        Catalog.from_embeddings(["a"], [[1.0]], levels=1, codes=4, seed=seed)
