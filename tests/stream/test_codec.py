"""Decoding what strangers send: within limits, and with one kind of error."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xgr_stream.config import Codec
from xgr_stream.errors import InvalidInput, MalformedMessage, MessageTooLarge
from xgr_stream.stream import codec, protocol

LIMIT = 1 << 20

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = ("v", "request_id", "user_id", "item_id", "k", "beam_width", "exclude", "timeout_ms", "min_offset", "action")
rare_fields = (
    "timestamp_ms",
    "min_offset_partition",
    "allow",
    "deny",
    "seen",
    "caps",
    "min_score",
    "candidates",
    "temperature",
    "seed",
    "reply_to",
    "tail",
    "key",
)
messages = st.dictionaries(st.sampled_from(fields) | st.text(max_size=6), values, max_size=8)


@given(messages)
@example({"v": "\\ud800", "\\u": '"\\u'})
@example({"v": "\x00\x1f\x7f\x85\u2028\ufeff\U0010ffff", "\x00": ["\ufffe"]})
@example({"v": [-(2**63), 2**64 - 1, 1.7976931348623157e308, 5e-324, -0.0], "NaN": "Infinity"})
def test_what_is_encoded_is_decoded(message: dict) -> None:
    assert codec.decode(codec.encode(message, "msgpack"), LIMIT) == message
    assert codec.decode(codec.encode(message, "json"), LIMIT) == message


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x93\x01\x02\x03",
        b"\x81\xa1v",
        b"\x81\xa1v\x01\x00",
        b"\x81\x01\x02",
        b"\x81\xc4\x01v\x01",
        b"\x81\xa1v\xa2\xff\xfe",
        b"\x81\xa1v\xd6\xff\x00\x00\x00\x00",
        b"\x81\xa1v\xc7\x00\x05",
        b"\x81\xa1v" + b"\x91" * 5_000,
        b"\x81\xa1v\xdd\x7f\xff\xff\xff",
        b"\x81\xa1v\xdb\x7f\xff\xff\xff",
        b"\xdf\x7f\xff\xff\xff",
        msgpack.packb({"v": [1] * 10_001}),
        msgpack.packb({"v": "x" * 65_537}),
        b"{",
        b"[1]",
        b"null",
        b'{"v": NaN}',
        b'{"v": "\\ud800"}',
        b'{"v": "\xff"}',
        b'{"v":' + b"[" * 100_000,
        b'{"v": ' + b"9" * 5_000 + b"}",
        b"\x80\x04\x95\x05cos\nsystem",
    ],
)
def test_what_is_not_a_message_within_limits_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        codec.decode(data, LIMIT)


@pytest.mark.parametrize(
    "data", [b"[1]", b"\n[1]", b'"v"', b"17", b"true", b" null", b"user,item", b"\xef\xbb\xbf{}", b"\x93\x01\x02\x03"]
)
def test_what_is_no_map_is_shown_beside_what_was_expected(data: bytes) -> None:
    with pytest.raises(MalformedMessage) as refused:
        codec.decode(data, LIMIT)
    assert str(refused.value) == f"message must be a map, as msgpack or as JSON, not {data!r}"


@pytest.mark.parametrize(("data", "tried"), [(b'{"v": 1', "JSON"), (b"\x81\xa1v", "msgpack")])
def test_a_map_that_cannot_be_read_is_refused_in_the_words_of_its_encoding(data: bytes, tried: str) -> None:
    with pytest.raises(MalformedMessage, match=rf"^message is not {tried} within our limits: "):
        codec.decode(data, LIMIT)


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
@pytest.mark.parametrize("wrap", [lambda value: {"v": value}, lambda value: {"v": [1, {"x": [value]}, "y"]}])
@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda size: "x" * size, 65_536),
        (lambda size: "x" * (size % 2) + "\u00e9" * (size // 2), 65_536),
        (lambda size: "\\" * size, 65_536),
        (lambda size: {"x" * size: None}, 65_536),
        (lambda size: [0] * size, 10_000),
        (lambda size: ["item"] * size, 10_000),
        (lambda size: [["x"]] * size, 10_000),
        (lambda size: {f"{number:x}": 0 for number in range(size)}, 1_024),
    ],
)
def test_limits_are_those_of_both_encodings(
    encoding: Codec, wrap: Callable[[object], dict], make: Callable[[int], object], most: int
) -> None:
    message = wrap(make(most))
    assert codec.decode(codec.encode(message, encoding), LIMIT) == message
    with pytest.raises(MalformedMessage, match=rf"(?i)not {encoding} within our limits: .*{most}"):
        codec.decode(codec.encode(wrap(make(most + 1)), encoding), LIMIT)


def test_a_message_itself_has_as_many_entries_as_any_map() -> None:
    message = {f"{number:x}": 0 for number in range(1_025)}
    with pytest.raises(MalformedMessage, match="a map has 1025 entries, and 1024 are the most"):
        codec.decode(codec.encode(message, "json"), LIMIT)
    del message["0"]
    assert codec.decode(codec.encode(message, "json"), LIMIT) == message


def test_a_message_beyond_the_limit_is_not_looked_at() -> None:
    with pytest.raises(MessageTooLarge, match="at most 10 bytes, not 11"):
        codec.decode(b"x" * 11, 10)


def refusal(parse: Callable[..., object], *arguments: object) -> str:
    """Why the arguments are refused; empty if they are not."""
    try:
        parse(*arguments)
    except InvalidInput as error:
        return str(error) or "without a reason"
    return ""


@given(st.binary(max_size=200) | messages.map(msgpack.packb), st.none() | st.binary(max_size=10))
def test_whatever_comes_in_is_read_or_refused(data: bytes, key: bytes | None) -> None:
    if refusal(codec.decode, data, LIMIT):
        return
    message = codec.decode(data, LIMIT)
    request_id, user_id = protocol.sender(message, key)
    assert request_id is None or 0 < len(request_id) <= 256
    user_id.encode()
    reasons = refusal(protocol.parse_event, message, key), refusal(protocol.parse_request, message, key)
    assert "without a reason" not in (*reasons, refusal(protocol.parse_response, message))


@pytest.mark.parametrize("name", ["request_id", "user_id", "status"])
@pytest.mark.parametrize("value", [["r"], {"r": 1}, 7, None, b"r"])
def test_what_names_no_request_is_no_response(name: str, value: object) -> None:
    """A client and a new owner look requests up by these, and lists can't be looked up."""
    message = {"v": 1, "request_id": "r", "user_id": "u", "status": "ok", name: value}
    for parse in (protocol.answered, protocol.parse_response):
        assert "user_id, request_id and status must be strings" in refusal(parse, message)


@given(messages, st.none() | st.just(b"u"))
def test_mistyped_fields_are_named(message: dict, key: bytes | None) -> None:
    readable = {"request_id": "r", "item_id": "i", **message, "v": 1}
    for parse in (protocol.parse_event, protocol.parse_request):
        reason = refusal(parse, readable, key)
        assert not reason or any(name in reason for name in (*fields, *rare_fields))


extensions = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)) | st.builds(
    msgpack.Timestamp, st.integers(0, 2**33)
)
events = st.dictionaries(st.sampled_from((*fields, "timestamp_ms", "x")), values | extensions, max_size=16).map(
    lambda message: {"v": 1, "item_id": "item-1", **message}
)


@given(events, st.none() | st.sampled_from([b"u", b"", b"\xff", "ü".encode(), b"x" * 257]))
@example({"v": True, "item_id": "i"}, b"u")
@example({"v": 1, "item_id": "i", "user_id": "u", "action": "buy", "timestamp_ms": 5}, b"u")
@example({"v": 1, "item_id": "i", "user_id": "other"}, b"u")
@example({"v": 1, "item_id": "i", "timestamp_ms": -1}, b"u")
@example({"v": 1, "item_id": "i", "action": ""}, b"u")
@example({"v": 1, "item_id": "i", 5: "u"}, b"u")
@example({"v": 1, "item_id": "i", "x": msgpack.Timestamp(5)}, b"u")
@example({"v": 1, "item_id": "i", "x": "y" * 1_024}, b"u")
def test_the_short_way_of_an_event_is_the_long_one(message: dict[str, object], key: bytes | None) -> None:
    data: bytes = msgpack.packb(message)
    short = codec.decode_short(data)
    if short is None:
        return
    assert short == codec.decode(data, LIMIT)
    plain = protocol.plain_event(short, key)
    if plain is not None:
        event = protocol.parse_event(short, key)
        assert plain == (event.user_id, event.item_id, event.action)


@pytest.mark.parametrize("data", [b"", b"\x80", b"{}", b"\xc0", b"\x81\xa1a", b"\x81\xa1a\x01\x01"])
def test_what_is_not_short_or_not_sound_is_for_the_long_way(data: bytes) -> None:
    assert codec.decode_short(data) is None


def test_a_plain_event_goes_the_short_way() -> None:
    message = {"v": 1, "user_id": "u", "item_id": "item-1", "action": "buy", "timestamp_ms": 5, "unknown": [1]}
    short = codec.decode_short(msgpack.packb(message))
    assert short is not None
    assert protocol.plain_event(short, b"u") == ("u", "item-1", "buy")
