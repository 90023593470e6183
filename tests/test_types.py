"""Values check themselves when they are built, and say which field was wrong, what it was and what it must be."""

from __future__ import annotations

import copy
import dataclasses
import math
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

from xgr_stream.errors import InvalidEvent, InvalidRequest, InvalidUpdate
from xgr_stream.stream import codec, protocol
from xgr_stream.types import (
    MAX_BEAM_WIDTH,
    MAX_CANDIDATES,
    MAX_EXCLUDE_ITEMS,
    MAX_ID_CHARS,
    MAX_TAGS,
    MAX_TAIL_TOKENS,
    CatalogUpdate,
    ItemFilter,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    Status,
    UserEvent,
)

LONG = "x" * (MAX_ID_CHARS + 1)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"user_id": ""}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"user_id": b"u"}, "user_id"),
        ({"user_id": LONG}, "user_id"),
        ({"item_id": 7}, "item_id"),
        ({"item_id": LONG}, "item_id"),
        ({"action": ""}, "action"),
        ({"action": 1}, "action"),
        ({"timestamp_ms": -1}, "timestamp_ms"),
        ({"timestamp_ms": 1.5}, "timestamp_ms"),
        ({"timestamp_ms": True}, "timestamp_ms"),
        ({"timestamp_ms": "1"}, "timestamp_ms"),
    ],
)
def test_an_event_names_its_wrong_field(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidEvent, match=rf"^{names} must be .*, not "):
        UserEvent(**{"user_id": "u", "item_id": "i", **fields})


@pytest.mark.parametrize(
    ("tags", "names"),
    [("drama", "tags"), ({"drama": 1}, "tags"), (5, "tags"), ([""], "an entry of tags"), ([1], "an entry of tags")],
)
def test_an_update_names_its_wrong_tags(tags: Any, names: str) -> None:
    with pytest.raises(InvalidUpdate, match=rf"^{names} must be .*, not "):
        CatalogUpdate("i", (1,), tags)


@pytest.mark.parametrize("name", ["exclude", "allow", "deny", "candidates"])
def test_a_mapping_is_no_list_of_its_keys(name: str) -> None:
    make: Any = ItemFilter if name != "candidates" else partial(RecommendRequest, "r", "u")
    with pytest.raises(InvalidRequest, match=rf"^{name} must be a sequence of strings, not "):
        make(**{name: {"a": 1}})


def test_ids_may_be_as_long_as_stated() -> None:
    event = UserEvent("u" * MAX_ID_CHARS, "ü" * MAX_ID_CHARS, "buy", 0)
    assert len(event.user_id) == len(event.item_id) == MAX_ID_CHARS


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"request_id": ""}, "request_id"),
        ({"user_id": LONG}, "user_id"),
        ({"k": 0}, "k"),
        ({"k": MAX_BEAM_WIDTH + 1}, "k"),
        ({"k": True}, "k"),
        ({"k": 10.0}, "k"),
        ({"k": "10"}, "k"),
        ({"beam_width": 9}, "beam_width"),
        ({"beam_width": MAX_BEAM_WIDTH + 1}, "beam_width"),
        ({"beam_width": "64"}, "beam_width"),
        ({"timeout_ms": -1}, "timeout_ms"),
        ({"timeout_ms": 0.5}, "timeout_ms"),
        ({"min_offset": -1}, "min_offset"),
        ({"min_offset": True}, "min_offset"),
        ({"min_offset_partition": 0}, "min_offset_partition"),
        ({"min_offset": 5, "min_offset_partition": -1}, "min_offset_partition"),
        ({"min_offset": 5, "min_offset_partition": "0"}, "min_offset_partition"),
        ({"reply_to": ""}, "reply_to"),
        ({"tail": 7}, "tail"),
        ({"tail": "7"}, "tail"),
        ({"tail": b"7"}, "tail"),
        ({"tail": [-1]}, "tail"),
        ({"tail": [1.0]}, "tail"),
        ({"tail": [True]}, "tail"),
        ({"caps": "red"}, "caps"),
        ({"caps": [("red", 1)]}, "caps"),
        ({"caps": {"red": 1}.items()}, "caps"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 100.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"seed": 1}, "seed"),
        ({"temperature": 1, "seed": -1}, "seed"),
        ({"temperature": 1, "seed": 1 << 63}, "seed"),
        ({"temperature": 1, "seed": 1.0}, "seed"),
        ({"temperature": 1, "seed": False}, "seed"),
        ({"candidates": "item"}, "candidates"),
        ({"candidates": b"item"}, "candidates"),
        ({"candidates": 1}, "candidates"),
        ({"min_score": 0.5}, "min_score"),
        ({"min_score": -math.inf}, "min_score"),
        ({"min_score": math.nan}, "min_score"),
        ({"min_score": False}, "min_score"),
        ({"min_score": "-1"}, "min_score"),
        ({"min_score": -(10**400)}, "min_score"),
        ({"candidates": ["item", ""]}, "an item of candidates"),
        ({"candidates": ["i" * 257]}, "an item of candidates"),
        ({"candidates": ["\ud800"]}, "an item of candidates"),
    ],
)
def test_a_request_names_its_wrong_field(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{names} must be .*, not "):
        RecommendRequest(**{"request_id": "r", "user_id": "u", **fields})


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16])
def test_integers_of_any_kind_are_taken_as_such(kind: Any) -> None:
    fields = {"k": 10, "beam_width": 50, "timeout_ms": 5, "min_offset": 7, "min_offset_partition": 1, "seed": 3}
    request = RecommendRequest(
        "r", "u", tail=[kind(1)], caps={"red": kind(2)}, temperature=1, **{n: kind(v) for n, v in fields.items()}
    )
    assert request == RecommendRequest("r", "u", tail=[1], caps={"red": 2}, temperature=1, **fields)
    assert {type(getattr(request, name)) for name in fields} == {int}
    codec.encode(protocol.request_message(request), "msgpack")
    event, update = UserEvent("u", "i", timestamp_ms=kind(8)), CatalogUpdate("i", (kind(1), kind(2)))
    assert (event, update) == (UserEvent("u", "i", timestamp_ms=8), CatalogUpdate("i", (1, 2)))
    assert [*map(type, (event.timestamp_ms, *(update.sid or ())))] == [int] * 3


@pytest.mark.parametrize("kind", [np.float32, np.float64, Fraction])
def test_numbers_of_any_kind_are_taken_as_such(kind: Any) -> None:
    request = RecommendRequest("r", "u", min_score=kind(-2.5), temperature=kind(0.5))
    assert request == RecommendRequest("r", "u", min_score=-2.5, temperature=0.5)
    assert (type(request.min_score), type(request.temperature)) == (float, float)
    codec.encode(protocol.request_message(request), "msgpack")


@pytest.mark.parametrize("value", [np.True_, np.array(-1.0), 1j, Decimal(-1)])
def test_what_is_no_number_is_refused_whatever_it_is(value: Any) -> None:
    for name in ("min_score", "temperature"):
        with pytest.raises(InvalidRequest, match=rf"^{name} must be None or a .*, not "):
            RecommendRequest(**{"request_id": "r", "user_id": "u", name: value})


@pytest.mark.parametrize("value", [np.True_, np.float64(10), np.array([10])])
def test_what_is_no_integer_is_refused_whatever_it_is(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^k must be an integer from 1 to 1024, not "):
        RecommendRequest("r", "u", k=value)


def test_a_request_may_go_to_the_limits() -> None:
    request = RecommendRequest("r", "u", k=MAX_BEAM_WIDTH, beam_width=MAX_BEAM_WIDTH, timeout_ms=0, min_offset=0)
    assert request.k == request.beam_width == MAX_BEAM_WIDTH


@pytest.mark.parametrize("tag", ["", 1, LONG])
def test_a_tag_of_caps_is_a_string(tag: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^a tag of caps must be a string of 1 to 256 characters, not "):
        RecommendRequest("r", "u", caps={tag: 1})


@pytest.mark.parametrize("most", [0, MAX_BEAM_WIDTH + 1, True])
def test_caps_are_numbers_of_items(most: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^caps must be integers .*, and that of 'a' is "):
        RecommendRequest("r", "u", caps={"a": most})


def test_caps_have_a_limit_and_are_kept_as_pairs() -> None:
    request = RecommendRequest("r", "u", caps={"b": 2, "a*": 1}, min_score=-3)
    assert request.caps == (("a*", 1), ("b", 2))
    assert type(request.min_score) is float
    assert RecommendRequest("r", "u", caps=(("b", 2), ("b", 1))).caps == (("b", 1),)
    assert dataclasses.replace(request, k=3).caps == request.caps
    assert len(RecommendRequest("r", "u", caps={str(i): 1 for i in range(MAX_TAGS)}).caps) == MAX_TAGS
    with pytest.raises(InvalidRequest, match=rf"^caps must hold at most {MAX_TAGS} entries, not {MAX_TAGS + 1}$"):
        RecommendRequest("r", "u", caps={str(i): 1 for i in range(MAX_TAGS + 1)})


def test_candidates_are_a_few_distinct_items_and_go_alone() -> None:
    assert RecommendRequest("r", "u", candidates=["b", "a", "b"]).candidates == ("b", "a")
    most = [str(i) for i in range(MAX_CANDIDATES)]
    assert len(RecommendRequest("r", "u", candidates=[*most, *most]).candidates or ()) == MAX_CANDIDATES
    for items in ([], [*most, "x"]):
        with pytest.raises(
            InvalidRequest, match=rf"^candidates must hold 1 to {MAX_CANDIDATES} items, not {len(items)}$"
        ):
            RecommendRequest("r", "u", candidates=items)
    others: list[dict[str, Any]] = [
        {"beam_width": 64},
        {"filter": ItemFilter(seen=True)},
        {"caps": {"a": 1}},
        {"min_score": -1.0},
        {"temperature": 1.0},
    ]
    for fields in others:
        with pytest.raises(InvalidRequest, match=r"^candidates must go without "):
            RecommendRequest("r", "u", candidates=["a"], **fields)


def test_a_tail_has_a_limit_and_is_kept_as_a_tuple() -> None:
    tail = [7] * MAX_TAIL_TOKENS
    assert RecommendRequest("r", "u", tail=tail).tail == tuple(tail)  # type: ignore[arg-type]
    assert RecommendRequest("r", "u", tail=()).tail == ()
    with pytest.raises(
        InvalidRequest, match=rf"^tail must hold at most {MAX_TAIL_TOKENS} tokens, not {len(tail) + 1}$"
    ):
        RecommendRequest("r", "u", tail=(*tail, 7))


@pytest.mark.parametrize("name", ["exclude", "allow", "deny"])
@pytest.mark.parametrize("value", ["drama", [1], [None], ["a", b"b"]])
def test_a_filter_takes_sequences_of_strings(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{name} must be a sequence of strings"):
        ItemFilter(**{name: value})


@pytest.mark.parametrize(("name", "limit"), [("exclude", MAX_EXCLUDE_ITEMS), ("allow", MAX_TAGS), ("deny", MAX_TAGS)])
def test_a_filter_has_limits(name: str, limit: int) -> None:
    assert len(getattr(ItemFilter(**{name: ["x"] * limit}), name)) == limit
    with pytest.raises(InvalidRequest, match=rf"^{name} must hold at most {limit} entries, not {limit + 1}$"):
        ItemFilter(**{name: ["x"] * (limit + 1)})


@pytest.mark.parametrize("name", ["allow", "deny"])
@pytest.mark.parametrize("entry", [[], ["a", 1], [["a"]], b"a", {"a": 1}, {"a": 1, 2: 3}, [str(i) for i in range(9)]])
def test_tags_of_one_entry_are_a_few_strings(name: str, entry: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"^{name} must be a sequence of strings, or of collections of 1 to 8 str"
    ):
        ItemFilter(**{name: ["b", entry]})


@pytest.mark.parametrize("name", ["exclude", "candidates"])
def test_of_many_items_the_one_that_is_no_string_is_named(name: str) -> None:
    make: Any = ItemFilter if name == "exclude" else partial(RecommendRequest, "r", "u")
    with pytest.raises(InvalidRequest, match=rf"^{name} must be a sequence of strings, and holds 5$"):
        make(**{name: ["x" * 20] * 100 + [5, 6]})


@pytest.mark.parametrize("value", [None, {"exclude": ["a"]}, ("a",)])
def test_a_request_has_a_filter(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^filter must be an ItemFilter, not "):
        RecommendRequest("r", "u", filter=value)


def test_entries_of_one_meaning_are_equal() -> None:
    assert ItemFilter.of(allow=[["b", "a", "b"], ("a",)]) == ItemFilter(allow=(("a", "b"), "a"))
    assert len(ItemFilter.of(deny=[{str(i) for i in range(8)}]).deny[0]) == 8


@pytest.mark.parametrize("value", [1, None, "yes", ("item-1",)])
def test_seen_is_true_or_false(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^seen must be true or false, not "):
        ItemFilter(seen=value)


def test_a_filter_keeps_tuples() -> None:
    assert ItemFilter(exclude=["a", "b"]) == ItemFilter(exclude=("a", "b"))  # type: ignore[arg-type]
    assert hash(ItemFilter(allow=["a"])) == hash(ItemFilter(allow=("a",)))  # type: ignore[arg-type]


def test_a_wrong_value_is_shown_shortened() -> None:
    with pytest.raises(InvalidEvent) as caught:
        UserEvent("u" * 10_000, "i")
    assert len(str(caught.value)) < 200
    assert "(str)" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        UserEvent("u", "i", "buy", 1),
        ItemFilter(("a",), ("b",), ("c",), True),
        RecommendRequest("r", "u", 3, 9, ItemFilter(deny=("x",)), 50, 7, "shop-answers", (5, 0), {"x": 2}, -1.5),
        RecommendResponse("r", "u", Status.OK, (Recommendation("i", -1.5, (1, 2, 3)),), stages_ms={"total": 1.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_frozen_and_can_be_copied(value: Any) -> None:
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, "other")
    assert copy.deepcopy(value) == value
