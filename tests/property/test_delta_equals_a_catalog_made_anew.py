"""What is told of all legal children of a prefix, while some are in the catalog's delta: as of a catalog made anew."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, from_numpy

from tests.profiles import examples
from tests.property.cases import Case, cases
from tests.property.oracle import EPSILON, Sid
from tests.property.test_updates_and_requests import base_of
from tests.property.users import record
from xgr_stream.catalog import Catalog
from xgr_stream.engine import Engine
from xgr_stream.testing.models import TAGS
from xgr_stream.types import CatalogUpdate, ItemFilter, RecommendRequest, RecommendResponse

NORMALIZERS = ("level", "vocabulary", "legal", "legal")
NEW = tuple(f"new-{i}" for i in range(8))
REFERENCE = importlib.import_module("xgr_kernels.beam_perturb.reference")


def prefixes(catalog: Catalog) -> list[list[Sid]]:
    """[level]: the codes above and of each node."""
    found: list[list[Sid]] = [[(), ()]]
    for level, (codes, parents) in enumerate(zip(catalog.forest.node_codes, catalog.forest.parents, strict=True)):
        nodes = np.arange(catalog.forest.num_nodes(level + 1))
        pairs = zip(parents.take(nodes).tolist(), codes.take(nodes).tolist(), strict=True)
        found.append([(*found[level][parent], code) for parent, code in pairs])
    return found[1:]


@contextmanager
def noise_of_codes(catalog: Catalog) -> Iterator[None]:
    """Noise that follows from a node's codes instead of its number, which another catalog has for another node."""
    tables: dict[tuple[int, int], Tensor] = {}

    def uniform(seeds: Tensor, level: int, nodes: Tensor) -> Tensor:
        seed = int(seeds[0, 0])
        if (seed, level) not in tables:
            numbers = [random.Random(repr((seed, prefix))).uniform(1e-9, 1) for prefix in prefixes(catalog)[level]]
            tables[seed, level] = from_numpy(np.array(numbers))
        table = tables[seed, level]
        return table[nodes.clamp(0, len(table) - 1)]

    with patch.object(REFERENCE, "_uniform", uniform):
        yield


def answer(engine: Engine, request: RecommendRequest) -> RecommendResponse:
    (response,) = engine.answer([(request, engine.history.view(request.user_id))])
    engine.check_integrity()
    return response


def sids_near(places: Sequence[Sid], codes: Sequence[int]) -> st.SearchStrategy[Sid]:
    """Often those of items, or their beginnings."""
    anything = st.tuples(*(st.integers(0, most - 1) for most in codes))
    shared = st.integers(0, len(codes))
    return st.builds(
        lambda sid, other, depth: (*sid[:depth], *other[depth:]), st.sampled_from(places), anything, shared
    )


@examples(100)
@given(st.data())
def test_answers_scores_and_draws_are_equal(data: st.DataObject) -> None:
    case = data.draw(cases(normalizers=NORMALIZERS))
    base = base_of(case)
    sids = sids_near([place.sid for place in base.values()], case.codes)
    tags = st.lists(st.sampled_from(TAGS), max_size=2, unique=True).map(lambda own: tuple(sorted(own)))
    some = st.lists(st.sampled_from(sorted(base)), max_size=5, unique=True)
    moved = data.draw(some)
    new = [
        CatalogUpdate(item_id, data.draw(sids), data.draw(tags), data.draw(st.sampled_from([True, True, False])))
        for item_id in (*NEW[: data.draw(st.integers(1, len(NEW)))], *moved)
    ]
    away = [item_id for item_id in data.draw(some) if item_id not in moved]
    updates = [CatalogUpdate(item_id, base[item_id].sid, base[item_id].tags, available=False) for item_id in away]
    updates += new
    wanted = data.draw(case.filters())
    gone = data.draw(st.lists(st.sampled_from(NEW), max_size=2))
    wanted = ItemFilter.of([*wanted.exclude, *gone], wanted.allow, wanted.deny, seen=wanted.seen)
    history = data.draw(case.histories(max_events=4))
    k = data.draw(st.integers(1, 4))
    plain = RecommendRequest("r", "user", 1000, 1000, wanted)
    drawn = replace(plain, temperature=data.draw(st.floats(0.1, 10)), seed=data.draw(st.integers(0, 99)))
    # A prefix that is in both takes two beams.
    few = replace(drawn, k=k, beam_width=2 * k)

    found = []
    for at_once in (True, False):
        engine = case.engine()
        if at_once:
            engine.update_catalog(updates, len(updates))
        else:
            engine.apply_updates(updates)
        record(engine, "user", history)
        best = answer(engine, plain)
        assert (engine.catalog.delta is not None) == at_once
        with noise_of_codes(engine.catalog):
            by_chance, first = answer(engine, drawn), answer(engine, few)
        found.append((best, by_chance, first, engine.score("user", [*base, *NEW])))

    (best, by_chance, first, scores), (best_anew, by_chance_anew, _, scores_anew) = found
    for mine, anew in ((best, best_anew), (by_chance, by_chance_anew)):
        assert (mine.status, mine.error, mine.shortfall) == (anew.status, anew.error, anew.shortfall)
        expected = {item.item_id: item.score for item in anew.items}
        assert {item.item_id: item.score for item in mine.items} == pytest.approx(expected, abs=EPSILON)
    drawn_sids, drawn_anew, first_sids = (
        list(dict.fromkeys(item.sid for item in response.items)) for response in (by_chance, by_chance_anew, first)
    )
    assert drawn_sids == drawn_anew
    assert first_sids == drawn_sids[: len(first_sids)]
    assert scores == pytest.approx(scores_anew, abs=EPSILON)


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_the_one_row_of_a_prefix_that_is_kept_knows_of_the_other(temperature: float | None) -> None:
    """Beams are too few for both, or one of the two nodes is emptied."""
    case = Case((3, 4), 8, 11, False, 2, 64, 4, normalizer="legal")
    sid = case.oracle.sid_of["item-0"]
    beside = [CatalogUpdate(f"new-{code}", (sid[0], code)) for code in range(4)]
    engines = [case.engine() for _ in range(2)]
    engines[0].update_catalog(beside, len(beside))
    engines[1].apply_updates(beside)
    same_prefix = tuple(item for item, own in case.oracle.sid_of.items() if own[0] == sid[0])
    for exclude in ((), same_prefix, ("new-0", "new-2"), tuple(update.item_id for update in beside)):
        answers = []
        for engine in engines:
            engine.append("user", ["item-1"])
            asked = RecommendRequest("r", "user", 50, 50, ItemFilter(exclude=exclude), temperature=temperature)
            everything = {item.item_id: item.score for item in answer(engine, asked).items}
            for width in (1, 2, 3):
                found = answer(engine, replace(asked, k=width, beam_width=width)).items
                expected = {item.item_id: everything[item.item_id] for item in found}
                assert {item.item_id: item.score for item in found} == pytest.approx(expected, abs=EPSILON)
            answers.append(everything)
        assert answers[0] == pytest.approx(answers[1], abs=EPSILON)
