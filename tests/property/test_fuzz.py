"""Whatever bytes come in by any door: the project's own errors or an answer, and never silence.

The doors are the topics (events, requests, responses as a client reads them), a catalog's file and `xgr.json`.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.stream.harness import DEAD, EVENTS, REQUESTS, RESPONSES, Stream, message
from xgr_stream.catalog import Catalog
from xgr_stream.errors import InvalidInput, MalformedMessage, XgrError
from xgr_stream.model import load_model
from xgr_stream.stream import codec, protocol
from xgr_stream.stream.records import Record
from xgr_stream.testing import save_tiny_model, tiny_catalog

FIELDS = (
    *("v", "request_id", "user_id", "k", "beam_width", "exclude", "allow", "deny", "seen", "caps", "min_score"),
    *(
        "candidates",
        "temperature",
        "seed",
        "timeout_ms",
        "min_offset",
        "min_offset_partition",
        "reply_to",
        "tail",
        "item_id",
        "action",
        "timestamp_ms",
        "status",
    ),
    *("items", "error", "message", "event_count", "event_offset", "model_version", "catalog_version", "cache"),
    *("stages_ms", "shortfall", "unscored", "unknown"),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(["u", "ok", "error", "warm", "item-1", "x" * 300])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
messages = st.dictionaries(st.sampled_from(FIELDS), values, max_size=12).map(lambda m: {"v": 1, **m})


@st.composite
def record_values(draw: st.DrawFn) -> bytes | None:
    kind = draw(st.sampled_from(["none", "bytes", "msgpack", "json", "cut"]))
    if kind == "none":
        return None
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    made = draw(messages)
    if kind == "json":
        return json.dumps(made, default=str).encode("utf-8", "surrogatepass")
    packed: bytes = msgpack.packb(made, use_bin_type=True, unicode_errors="surrogatepass")
    return packed if kind == "msgpack" else packed[: draw(st.integers(0, len(packed)))]


keys = st.none() | st.just(b"u") | st.binary(max_size=8)


@given(st.lists(st.tuples(st.booleans(), keys, record_values()), max_size=8))
@examples(300)
def test_every_record_ends_in_something_and_every_offset_goes_on(
    records: list[tuple[bool, bytes | None, bytes | None]],
) -> None:
    stream = Stream(partitioner="any")
    offsets = {EVENTS: 0, REQUESTS: 0}
    requests = 0
    written = []
    for is_request, key, value in records:
        topic = REQUESTS if is_request else EVENTS
        written += stream.run(Record(topic, 1, offsets[topic], key, value, stream.clock.wall_ms()))
        offsets[topic] += 1
        requests += is_request
    stream.clock.advance(3_700)  # past the longest timeout: who waited for a `min_offset` hears of it
    written += stream.run()
    for topic, count in offsets.items():
        assert (stream.processor.committable(topic, 1) or 0) == count
    answers = [p for p in written if p.topic == RESPONSES]
    refused = [p for p in written if p.topic == DEAD and message(p)["topic"] == REQUESTS]
    assert len(answers) + len(refused) == requests
    for produce in answers:
        protocol.parse_response(message(produce))
    stream.history.check_integrity()
    assert stream.processor.pending == 0


@given(record_values())
@examples(300)
def test_a_client_reads_a_response_or_says_that_it_is_none(value: bytes | None) -> None:
    with contextlib.suppress(InvalidInput):
        protocol.parse_response(codec.decode(value or b"", 1 << 20))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("fuzz") / "model")


@given(st.data())
@examples(150)
def test_any_xgr_json_is_read_or_refused_by_name(checkpoint: Path, data: st.DataObject) -> None:
    path = checkpoint / "xgr.json"
    original = path.read_text()
    changed: Any = json.loads(original)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from([*changed, "unknown"]))
        changed[name] = data.draw(values.filter(_is_json))
        text = json.dumps(changed)
    else:
        text = data.draw(st.text(max_size=60) | st.just(original[: data.draw(st.integers(0, len(original)))]))
    try:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(XgrError):
            load_model(checkpoint)
    finally:
        path.write_text(original)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


@given(st.data())
@examples(150)
def test_any_catalog_file_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("catalog")
    suffix = data.draw(st.sampled_from([".parquet", ".csv", ".jsonl"]))
    path = home / f"catalog{suffix}"
    if suffix == ".parquet":
        tiny_catalog(items=5).save(path)
        whole = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    else:
        lines = ["item_id,sid_0,sid_1,tags"] if suffix == ".csv" else []
        lines += data.draw(st.lists(st.text(max_size=30) | st.just('{"item_id": "a", "sid": [1, 2]}'), max_size=5))
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(XgrError):
        Catalog.load(path)


def test_the_suppressed_error_is_one_of_ours() -> None:
    with pytest.raises(MalformedMessage):
        codec.decode(b"\xc1", 1 << 20)
