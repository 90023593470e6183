"""The examples of docs/protocol.md are what the code writes and reads."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from xgr_stream import errors
from xgr_stream.config import HistoryConfig
from xgr_stream.errors import MalformedMessage, NothingLegal
from xgr_stream.history import HistoryStore, SourcePosition
from xgr_stream.stream import changelog, codec, protocol
from xgr_stream.stream.records import Record
from xgr_stream.stream.source_header import source_header, source_of
from xgr_stream.types import (
    CacheState,
    CatalogUpdate,
    ItemFilter,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    Shortfall,
    Status,
    Unscored,
    UserEvent,
)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()

EVENT = UserEvent("user-7", "item-42", "view", 1_700_000_000_000)
REQUEST = RecommendRequest(
    "r-1",
    "user-7",
    k=2,
    beam_width=16,
    filter=ItemFilter(exclude=("item-42",), allow=("film", ("hd", "series")), deny=("horror",), seen=True),
    timeout_ms=250,
    min_offset=1041,
    min_offset_partition=3,
    reply_to="shop-answers",
    tail=(5, 0),
    caps={"brand:*": 3, "new": 1},
    min_score=-12.5,
    temperature=1.5,
    seed=7,
)
RESPONSE = RecommendResponse(
    "r-1",
    "user-7",
    Status.OK,
    (Recommendation("item-9", -1.5, (3, 0, 7)), Recommendation("item-4", -2.25, (3, 1, 2))),
    event_count=12,
    event_offset=1041,
    model_version="9f2c4e6a8b0d1f35",
    catalog_version="3fa1c2d4e5f60718.0",
    cache=CacheState.WARM,
    stages_ms={"wait": 0.5, "append": 0.0, "decode": 4.25, "total": 4.75},
    tail_computed=True,
    shortfall=Shortfall.EXHAUSTED,
)
SCORING_REQUEST = RecommendRequest("r-2", "user-7", timeout_ms=250, candidates=("item-9", "item-8", "item-7"))
SCORING_RESPONSE = RecommendResponse(
    "r-2",
    "user-7",
    Status.OK,
    (Recommendation("item-9", -1.5, (3, 0, 7)),),
    event_count=12,
    event_offset=1041,
    model_version="9f2c4e6a8b0d1f35",
    catalog_version="3fa1c2d4e5f60718.0",
    cache=CacheState.WARM,
    stages_ms={"wait": 0.5, "append": 0.0, "decode": 4.25, "total": 4.75},
    unscored={"item-8": Unscored.UNAVAILABLE, "item-7": Unscored.UNKNOWN},
)
UPDATE = CatalogUpdate("item-42", (3, 0, 7), ("film", "comedy"), available=False)
REFUSAL = RecommendResponse.failure("r-1", "user-7", NothingLegal("no item"))
SOURCE = SourcePosition("page-views", 2, 5120)
REFUSED = Record("user-events", 3, 1042, b"user-7", b"\xff\x00", 1_700_000_000_000)

MESSAGES = {
    "event": protocol.event_message(EVENT),
    "request": protocol.request_message(REQUEST),
    "response": protocol.response_message(RESPONSE),
    "error response": protocol.response_message(REFUSAL),
    "scoring request": protocol.request_message(SCORING_REQUEST),
    "scoring response": protocol.response_message(SCORING_RESPONSE),
    "catalog update": protocol.update_message(UPDATE),
    "dead letter": protocol.dead_letter_message(REFUSED, MalformedMessage("not msgpack")),
}


def blocks(language: str) -> dict[str, str]:
    return dict(re.findall(rf"^```{language} ([a-z ]+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))


HEX = {name: bytes.fromhex(text) for name, text in blocks("hex").items()}
JSON = blocks("json")


@pytest.mark.parametrize("name", MESSAGES)
def test_the_bytes_are_what_is_written(name: str) -> None:
    assert codec.encode(MESSAGES[name], "msgpack") == HEX[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_the_json_says_the_same(name: str) -> None:
    shown = json.loads(JSON[name])
    assert json.loads(codec.encode(MESSAGES[name], "json")) == shown
    assert with_base64(codec.decode(HEX[name], 1 << 20)) == shown


def with_base64(message: dict[str, Any]) -> dict[str, Any]:
    return {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in message.items()}


@pytest.mark.parametrize("key", [b"user-7", None])
def test_the_bytes_are_read(key: bytes | None) -> None:
    read = {name: codec.decode(data, 1 << 20) for name, data in HEX.items() if name in MESSAGES}
    assert protocol.parse_event(read["event"], key) == EVENT
    assert protocol.parse_request(read["request"], key) == REQUEST
    assert protocol.parse_response(read["response"]) == RESPONSE
    assert protocol.parse_response(read["error response"]) == REFUSAL
    assert protocol.parse_request(read["scoring request"], key) == SCORING_REQUEST
    assert protocol.parse_response(read["scoring response"]) == SCORING_RESPONSE


def test_an_update_is_read() -> None:
    message = codec.decode(HEX["catalog update"], 1 << 20)
    assert protocol.parse_update(message, b"item-42") == UPDATE
    assert protocol.parse_update(None, b"item-42") == CatalogUpdate("item-42", None)
    assert protocol.update_message(CatalogUpdate("item-42", None)) is None
    assert protocol.parse_update({"v": 1, "sid": [1, 2]}, b"item-42") == CatalogUpdate("item-42", (1, 2))


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_is_documented(name: str) -> None:
    fields = set(re.findall(r"`([a-z_]+)`", DOCUMENT)) | {"v"}
    assert set(MESSAGES[name]) <= fields


def test_every_error_code_that_can_be_answered_is_documented_and_no_other() -> None:
    operators = {"config", "catalog", "checkpoint", "topology", "history", "fenced"}
    abstract = {"invalid", "failed"}
    codes = {kind.code for kind in vars(errors).values() if isinstance(kind, type)}
    documented = set(re.findall(r"`([a-z_]+)`", DOCUMENT))
    assert codes - operators - abstract <= documented
    _, table = DOCUMENT.split("### Errors\n")
    answers = set(re.findall(r"^\| `([a-z_]+)` \|", table.split("\n## ")[0], re.MULTILINE))
    assert "over_capacity" in answers
    assert not answers & operators


def test_the_changelog_bytes_are_what_is_written() -> None:
    store = HistoryStore(HistoryConfig(keep_events=32, segment_events=2))
    written = []
    for offset, item, action in [(7, "item-1", None), (990, "item-2", "view")]:
        event = UserEvent("user-7", item, action)
        applied = store.apply(event, partition=0, offset=offset)
        assert applied is not None
        written.append(changelog.entry_of(event, offset, applied, store))
    assert written[1] == (HEX["segment key"], HEX["segment value"])
    assert changelog.delta_key("user-7", 11) == HEX["delta key"]
    assert changelog.forget_entry("user-7", 1041).key == HEX["forget key"]
    assert changelog.forget_entry("user-7", 1041, [SOURCE]).value == HEX["forget value with sources"]
    assert changelog.fence(b"\x00\x00") == (HEX["fence key"], HEX["fence value"])


def test_the_bytes_of_copies_are_what_is_written() -> None:
    assert source_header(SOURCE) == ("xgr-source", HEX["source header"])
    assert source_of((("xgr-source", HEX["source header"]),)) == SOURCE
    store = HistoryStore(HistoryConfig(keep_events=32, segment_events=2))
    copied = store.add_copy("user-7", "item-42", "view", 0, 1041, SOURCE)
    assert copied is not None
    assert changelog.entry_of(EVENT, 1041, copied, store).value == HEX["delta value of a copy"]
    event = UserEvent("user-7", "item-9")
    applied = store.apply(event, partition=0, offset=1042)
    assert applied is not None
    assert changelog.entry_of(event, 1042, applied, store).value == HEX["segment value with sources"]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (changelog.delta_key("user-7", 0), "delta value of a copy"),
        (HEX["segment key"], "segment value with sources"),
        (HEX["forget key"], "forget value with sources"),
    ],
)
def test_the_bytes_of_copies_are_read(key: bytes, name: str) -> None:
    store = HistoryStore(HistoryConfig(keep_events=32, segment_events=2))
    changelog.restore(store, 0, key, HEX[name])
    store.finish_restore(0)
    assert [watermark.source for watermark in store.watermarks(0)] == [SOURCE]


def test_the_changelog_bytes_are_read() -> None:
    store = HistoryStore(HistoryConfig(keep_events=32, segment_events=2))
    changelog.restore(store, 0, HEX["segment key"], HEX["segment value"])
    changelog.restore(store, 0, HEX["fence key"], HEX["fence value"])
    changelog.restore(store, 0, changelog.delta_key("user-7", 2), HEX["delta value"])
    assert changelog.restore(store, 0, HEX["segment key"], HEX["segment value"]) is None
    store.finish_restore(0)
    view = store.view("user-7")
    assert view is not None
    assert [store.item_names[i] for i in view.items.tolist()] == ["item-1", "item-2", "item-42"]
    assert view.last_offset == 1041
