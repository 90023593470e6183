"""Caps and score thresholds on the result, against a greedy choice of plain beam search's items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.engine.no_memory import OUT_OF_MEMORY
from tests.profiles import examples
from tests.property.cases import Case, cases
from tests.property.oracle import EPSILON, assert_same
from tests.property.users import record
from xgr_stream.engine import Engine
from xgr_stream.engine.decode import BeamDecoder
from xgr_stream.engine.selection import WIDER, covers
from xgr_stream.errors import InvalidRequest
from xgr_stream.testing.models import TAGS
from xgr_stream.types import (
    CacheState,
    ItemFilter,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    Shortfall,
    Status,
)

PATTERNS = (*TAGS, "*", "r*", "gre*", "blue*", "bl", "unheard-of")


def greedy(
    items: Sequence[Recommendation],
    k: int,
    caps: Mapping[str, int],
    min_score: float | None,
    tags_of: Mapping[str, set[str]],
) -> list[Recommendation]:
    """The first k that exceed no cap."""
    taken: list[Recommendation] = []
    counts: Counter[str] = Counter()
    for item in items:
        tags = tags_of[item.item_id]
        if min_score is not None and item.score < min_score:
            continue
        if all(counts[tag] < most for tag in tags for pattern, most in caps.items() if matches(pattern, tag)):
            counts.update(tags)
            taken.append(item)
    return taken[:k]


def matches(pattern: str, tag: str) -> bool:
    return tag.startswith(pattern[:-1]) if pattern.endswith("*") else tag == pattern


def ask(engine: Engine, user: str, k: int, **fields: object) -> RecommendResponse:
    request = RecommendRequest("r", user, k, **fields)  # type: ignore[arg-type]
    (response,) = engine.answer([(request, engine.history.view(user))])
    return response


@examples(100)
@given(st.data())
def test_caps_and_thresholds_equal_a_greedy_choice_of_the_beams(data: st.DataObject) -> None:
    case = data.draw(cases(normalizers=("level", "legal")))
    history = data.draw(case.histories(max_events=4))
    item_filter = data.draw(case.filters())
    caps = data.draw(st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 4), max_size=3))
    k = data.draw(st.integers(1, 12))
    width = k + data.draw(st.integers(0, 6))
    widest = data.draw(st.integers(1, 60))
    away = data.draw(st.lists(st.sampled_from(case.items["item_id"]), max_size=4))
    engine = case.engine(widened_beam_width=widest)
    engine.catalog.set_available(away, False)
    record(engine, "user", history)
    oracle = case.oracle
    legal = oracle.legal(item_filter, away, [item for item, _ in history])
    leaves = len(set(legal.values()))
    context = oracle.context([i for i, _ in history], [a for _, a in history], case.window)
    min_score = data.draw(st.none() | st.floats(-12, 0))

    response = ask(engine, "user", k, beam_width=width, filter=item_filter, caps=caps, min_score=min_score)

    engine.check_integrity()
    if not legal:
        assert (response.error, response.shortfall) == ("nothing_legal", None)
        return
    if response.status is Status.UNKNOWN_USER:
        order = sorted(legal, key=lambda item: -case.items["popularity"][case.items["item_id"].index(item)])
        popular = [Recommendation(item, 0.0, legal[item]) for item in order]
        expected = greedy(popular, k, caps, None, oracle.tags_of)
        assert list(response.items) == expected
        assert response.shortfall is (Shortfall.EXHAUSTED if len(expected) < k else None)
        return
    while True:
        beams = oracle.beam_search(context, legal, case.normalizer, width)
        beams.sort(key=lambda item: (-item.score, item.sid, item.item_id))
        scores = sorted({item.score for item in beams} | ({min_score} if min_score is not None else set()))
        assume(all(b - a > 2 * EPSILON for a, b in pairwise(scores)))  # a greedy choice depends on the order
        expected = greedy(beams, k, caps, min_score, oracle.tags_of)
        cut = min_score is not None and beams[-1].score < min_score
        complete = leaves < width or width == leaves == len(set(oracle.sid_of.values()))
        if len(expected) == k or complete or cut or width >= widest:
            break
        width = min(WIDER * width, widest)
    assert_same(response.items, expected, k)
    assert [item.item_id for item in response.items] == [item.item_id for item in expected]
    short = Shortfall.EXHAUSTED if complete else Shortfall.THRESHOLD if cut else Shortfall.BEAMS
    if short is Shortfall.EXHAUSTED and len(expected) < k:  # then no number of beams would bring another
        everything = oracle.beam_search(context, legal, case.normalizer, len(oracle.sid_of))
        everything.sort(key=lambda item: (-item.score, item.sid, item.item_id))
        assert_same(response.items, greedy(everything, k, caps, min_score, oracle.tags_of), k)
    assert response.shortfall is (short if len(expected) < k else None)


@examples(100)
@given(st.data())
def test_plain_answers_say_that_they_fall_short(data: st.DataObject) -> None:
    case = data.draw(cases())
    engine = case.engine()
    history = data.draw(case.histories(max_events=4))
    record(engine, "user", history)
    item_filter, k = data.draw(case.filters()), data.draw(st.integers(1, 40))
    legal = case.oracle.legal(item_filter, seen=[item for item, _ in history])
    response = ask(engine, "user", k, filter=item_filter)
    assert len(response.items) == min(k, len(legal))
    assert response.shortfall is (Shortfall.EXHAUSTED if 0 < len(legal) < k else None)


CASE = Case((6, 6), 25, 3, False, 2, 16, 4)


def test_one_that_is_decoded_again_counts_once_and_tells_how_it_was_found() -> None:
    engine = CASE.engine()
    record(engine, "user", [("item-0", None)])
    plain = ask(engine, "user", 6, beam_width=6)
    engine.forget(["user"])
    before = engine.stats().requests
    wide = ask(engine, "user", 6, beam_width=6, caps={"*": 1})
    assert engine.stats().requests == before + 1
    assert plain.cache is wide.cache is CacheState.COLD
    assert set(wide.stages_ms) == {"append", "decode"}
    tags = [tag for item in wide.items for tag in CASE.oracle.tags_of[item.item_id]]
    assert len(tags) == len(set(tags))
    assert wide.items != plain.items
    engine.check_integrity()


def test_only_the_request_that_falls_short_is_decoded_again() -> None:
    engine = CASE.engine()
    record(engine, "user", [("item-0", None)])
    view = engine.history.view("user")
    plain = RecommendRequest("plain", "user", 6, 6)
    caps = RecommendRequest("capped", "user", 6, 6, caps={"*": 1})
    nothing = RecommendRequest("nothing", "user", 6, 6, ItemFilter(allow=("unheard-of",)))
    together = engine.answer([(caps, view), (plain, view), (nothing, view), (caps, view)])
    for request, mine in zip((caps, plain, nothing, caps), together, strict=True):
        (alone,) = engine.answer([(request, view)])
        assert (mine.request_id, mine.status, mine.error) == (alone.request_id, alone.status, alone.error)
        assert_same(mine.items, alone.items, len(alone.items))
        assert mine.shortfall is alone.shortfall


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_one_that_more_beams_have_no_memory_for_keeps_what_it_had(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = CASE.engine()
    record(engine, "user", [("item-0", None)])
    view = engine.history.view("user")
    plain, caps = RecommendRequest("plain", "user", 6, 6), RecommendRequest("caps", "user", 6, 6, caps={"*": 1})
    begin = BeamDecoder.begin

    def fails(self: BeamDecoder, prefixes: Any, widths: Any, *rest: Any) -> Any:
        if max(widths) > 6:
            raise error
        return begin(self, prefixes, widths, *rest)

    monkeypatch.setattr(BeamDecoder, "begin", fails)
    ours, short = engine.answer([(plain, view), (caps, view)])
    assert (ours.status, len(ours.items)) == (Status.OK, 6)
    assert (short.status, short.shortfall) == (Status.OK, Shortfall.BEAMS)
    assert 0 < len(short.items) < 6
    assert "for more beams" in caplog.text
    engine.check_integrity()


def test_a_threshold_does_not_say_exhausted_of_beams_that_were_left_out() -> None:
    case = Case((6, 6, 6), 25, 29, False, 2, 16, 4)
    engine = case.engine()
    record(engine, "user", [("item-0", None)])
    least = -5.7713
    narrow, wide = (ask(engine, "user", 6, beam_width=width, min_score=least) for width in (6, 64))
    assert len(narrow.items) < 6
    assert (narrow.shortfall, wide.shortfall) == (Shortfall.THRESHOLD, None)
    few = ask(engine, "user", 25, beam_width=64, min_score=least)
    assert few.shortfall is Shortfall.EXHAUSTED


def test_caps_look_through_a_bounded_number_of_popular_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap may leave a handful of millions, and the device's thread would look at each."""
    engine = CASE.engine()
    everything = ask(engine, "stranger", 25, caps={"*": 1})
    assert everything.shortfall is Shortfall.EXHAUSTED
    monkeypatch.setattr("xgr_stream.engine.selection.POPULAR", 5)
    first = ask(engine, "stranger", 6, caps={"*": 1})
    assert (first.status, first.shortfall) == (Status.UNKNOWN_USER, Shortfall.BEAMS)
    assert 0 < len(first.items) < 6
    assert first.items == everything.items[: len(first.items)]
    assert len(ask(engine, "stranger", 6).items) == 6
    monkeypatch.setattr("xgr_stream.engine.selection.POPULAR", 25)
    assert ask(engine, "stranger", 25, caps={"*": 1}).items == everything.items


def test_the_facade_takes_caps_and_a_threshold() -> None:
    engine = CASE.engine()
    engine.append("user", ["item-0"])
    everything = engine.recommend("user", 25, beam_width=64)
    least = everything[4].score
    assert engine.recommend("user", 25, beam_width=64, min_score=least) == everything[:5]
    assert engine.recommend("user", 25, beam_width=64, min_score=float(np.nextafter(least, 0))) == everything[:4]
    once = engine.recommend("user", 25, beam_width=64, caps={"red": 1})
    assert sum("red" in CASE.oracle.tags_of[item.item_id] for item in once) == 1


@pytest.mark.parametrize("caps", [[], 0, False, ""])
def test_the_facade_refuses_caps_that_are_none(caps: Any) -> None:
    engine = CASE.engine()
    assert engine.recommend("stranger", caps={}) == engine.recommend("stranger", caps=None)
    with pytest.raises(InvalidRequest, match=r"^caps must be a mapping of tags to numbers of items, not "):
        engine.recommend("stranger", caps=caps)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("b:*", ["b:", "b:x", "b:é", "b:\U0010ffff"]),
        ("b:x", ["b:x"]),
        ("b", ["b"]),
        ("b*", None),
        ("c*", []),
        ("c", []),
    ],
)
def test_a_pattern_matches_a_tag_or_what_begins_with_it(pattern: str, expected: list[str] | None) -> None:
    names = ["a", "b", "b:", "b:x", "b:é", "b:\U0010ffff", "b;", "d"]
    found = [name for name in names if covers(pattern, name)]
    assert found == (expected if expected is not None else sorted(name for name in names if name[0] == "b"))
