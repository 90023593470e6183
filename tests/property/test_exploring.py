"""Items drawn by chance: with exact probabilities, from what the filters leave, equally for equal seeds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.cases import Case, cases
from tests.property.oracle import EPSILON, Oracle, Sid, _next_codes
from tests.property.users import record
from xgr_stream.engine import Engine
from xgr_stream.types import CatalogUpdate, ItemFilter, RecommendRequest, RecommendResponse, Shortfall, Status

NORMALIZERS = ("level", "vocabulary", "legal")


def answer(engine: Engine, *requests: RecommendRequest) -> list[RecommendResponse]:
    return engine.answer([(request, engine.history.view(request.user_id)) for request in requests])


@examples(80)
@given(st.data())
def test_all_that_is_legal_is_drawn_once_with_its_own_score(data: st.DataObject) -> None:
    case = data.draw(cases(normalizers=NORMALIZERS))
    history = data.draw(case.histories(max_events=4))
    item_filter = data.draw(case.filters())
    engine = case.engine()
    record(engine, "user", history)
    legal = case.oracle.legal(item_filter, seen=[item for item, _ in history])
    width = len(case.items["item_id"])
    heat = data.draw(st.floats(0.01, 100))
    request = RecommendRequest(
        "r", "user", width, width, item_filter, temperature=heat, seed=data.draw(st.integers(0, 99))
    )
    plain = replace(request, temperature=None, seed=None)
    few = replace(request, k=1, beam_width=data.draw(st.integers(1, width)))

    drawn, best, first, same = answer(engine, request, plain, few, request)

    engine.check_integrity()
    assert (drawn.status, drawn.error, drawn.shortfall) == (best.status, best.error, best.shortfall)
    assert {item.item_id for item in drawn.items} == (set(legal) if drawn.status is not Status.ERROR else set())
    scores = {item.item_id: item.score for item in best.items}
    assert all(abs(item.score - scores[item.item_id]) < EPSILON for item in drawn.items)
    assert [item.item_id for item in same.items] == [item.item_id for item in drawn.items]
    if drawn.status is Status.OK:
        assert first.items[0].sid == drawn.items[0].sid


CASE = Case((3, 4), 8, 11, False, 2, 64, 4)
DRAWS = 6_144


def probabilities(oracle: Oracle, context: list[int], sids: set[Sid], heat: float) -> dict[Sid, float]:
    """Of each semantic ID that is legal, by softmaxes over legal codes at this temperature."""
    beams: dict[Sid, float] = {(): 1.0}
    for _ in oracle.codes:
        children: dict[Sid, float] = {}
        for beam, chance in beams.items():
            log_probs = oracle._log_probs(context, beam, sids, "legal")
            weights = {code: math.exp(log_probs[code] / heat) for code in _next_codes(beam, sids)}
            children |= {(*beam, code): chance * weight / sum(weights.values()) for code, weight in weights.items()}
        beams = children
    return beams


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize(("heat", "normalizer"), [(0.6, "level"), (1.0, "legal"), (2.5, "vocabulary")])
def test_the_first_two_are_drawn_with_the_exact_probabilities(heat: float, normalizer: str, launched: bool) -> None:
    """`launched`: with new items in the catalog's delta, beside others, below the same codes, and by themselves."""
    case = replace(CASE, normalizer=normalizer)
    engine = case.engine()
    engine.append("user", ["item-1"])
    item_filter = ItemFilter(exclude=("item-3",), seen=True)
    legal = case.oracle.legal(item_filter, seen=["item-1"])
    if launched:
        beside, sold_out = "item-0", "item-2"
        first = case.oracle.sid_of[beside][0]
        assert beside in legal
        new = {"beside": case.oracle.sid_of[beside], **{f"{code}": (first, code) for code in range(0, 4, 2)}}
        new |= {"instead": case.oracle.sid_of[sold_out]}
        updates = [CatalogUpdate(item_id, sid) for item_id, sid in new.items()]
        updates.append(CatalogUpdate(sold_out, case.oracle.sid_of[sold_out], (), available=False))
        engine.update_catalog(updates, len(updates))
        legal |= new
        legal.pop(sold_out, None)
    chances = probabilities(case.oracle, case.oracle.context(["item-1"]), set(legal.values()), heat)
    counts: Counter[tuple[Sid, Sid]] = Counter()
    for start in range(0, DRAWS, 1024):
        requests = [
            # Four beams, since two prefixes may be two nodes each.
            RecommendRequest(f"r-{i}", "user", 4, 4, item_filter, temperature=heat)
            for i in range(start, start + 1024)
        ]
        for response in answer(engine, *requests):
            # Two leaves: of two items at one leaf, the first is taken with it.
            counts[tuple(dict.fromkeys(item.sid for item in response.items))[:2]] += 1  # type: ignore[index]
    alone = Counter(dict.fromkeys(chances, 0))
    for sids, count in counts.items():
        alone[sids[0]] += count
    for sid, chance in chances.items():
        assert abs(alone[sid] - DRAWS * chance) < 4.5 * math.sqrt(DRAWS * chance * (1 - chance)) + 3
    shared = {sid for sid in chances if sum(other == sid for other in legal.values()) > 1}
    for a, first in chances.items():
        for b, second in chances.items():
            if a != b and a not in shared:
                chance = first * second / (1 - first)
                assert abs(counts[a, b] - DRAWS * chance) < 4.5 * math.sqrt(DRAWS * chance) + 3


def test_caps_and_thresholds_apply_to_what_is_drawn() -> None:
    case = Case((6, 6), 25, 3, False, 2, 16, 4)
    engine = case.engine()
    engine.append("user", ["item-0"])
    plain = {item.item_id: item.score for item in engine.recommend("user", 25, beam_width=64)}
    least = float(np.median(list(plain.values())))
    request = RecommendRequest("r", "user", 6, 6, caps={"*": 2}, min_score=least, temperature=3.0)
    (response,) = answer(engine, request)
    tags = Counter(tag for item in response.items for tag in case.oracle.tags_of[item.item_id])
    assert max(tags.values()) <= 2
    assert all(item.score >= least for item in response.items)
    assert response.shortfall is (None if len(response.items) == 6 else Shortfall.EXHAUSTED)
    everything = answer(engine, replace(request, k=25, beam_width=64, caps=()))[0]
    assert {item.item_id for item in everything.items} == {item for item, score in plain.items() if score >= least}
    assert everything.shortfall is Shortfall.EXHAUSTED


def test_seeds_follow_from_the_request_or_are_fresh() -> None:
    engine = Case((6, 6), 25, 3, False, 2, 16, 4).engine()
    engine.append("user", ["item-0"])
    requests = [RecommendRequest(f"r-{i}", "user", 5, temperature=2.0) for i in range(20)]
    first, second = answer(engine, *requests), answer(engine, *reversed(requests))[::-1]
    assert [response.items for response in first] == [response.items for response in second]
    assert len({response.items for response in first}) > 10
    assert engine.recommend("user", 5, temperature=2.0, seed=1) == engine.recommend("user", 5, temperature=2.0, seed=1)
    fresh = {tuple(item.item_id for item in engine.recommend("user", 5, temperature=2.0)) for _ in range(20)}
    assert len(fresh) > 10
