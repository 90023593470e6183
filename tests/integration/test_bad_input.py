"""What comes back for records that are wrong: an error response where somebody can be answered, else a dead letter."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import pytest

from tests.integration.raw import Raw, partition_of, write_too_large
from xgr_stream.client import RecommendClient
from xgr_stream.config import MAX_BATCH_BYTES
from xgr_stream.errors import MessageTooLarge, NothingLegal
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.testing.broker import Broker
from xgr_stream.types import Status

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEN_MB = 10_000_000


def request_id() -> str:
    return uuid.uuid4().hex


@pytest.mark.parametrize(
    ("fields", "code", "names"),
    [
        ({"k": 0}, "invalid_request", "k must be"),
        ({"k": "ten"}, "invalid_request", "k must be"),
        ({"k": 2_000}, "invalid_request", "k must be"),
        ({"k": 10, "beam_width": 5}, "invalid_request", "beam_width"),
        ({"beam_width": 5_000}, "invalid_request", "beam_width"),
        ({"exclude": "item-1"}, "invalid_request", "exclude"),
        ({"tail": [1_000]}, "invalid_request", "tail must hold token ids below"),
        ({"user_id": "somebody-else"}, "invalid_request", "user_id"),
        ({"allow": ["no-such-tag"]}, "nothing_legal", ""),
        ({"exclude": [f"item-{n}" for n in range(60)]}, "nothing_legal", ""),
        ({"v": 9}, "unsupported_version", "v must be"),
    ],
)
async def test_faulty_request_gets_an_error_response(raw: Raw, fields: dict[str, Any], code: str, names: str) -> None:
    own = request_id()
    await raw.event("user-1", {"v": 1, "item_id": "item-1"})
    await raw.request("user-1", {"v": 1, "request_id": own, **fields})
    response = await raw.response(own)
    assert (response["status"], response["error"]) == ("error", code)
    assert names in response["message"]


async def test_request_on_a_partition_that_is_not_its_keys(raw: Raw, worker: KafkaDriver) -> None:
    own = request_id()
    await raw.request("user-2", {"v": 1, "request_id": own}, wrong_partition=True)
    response = await raw.response(own)
    assert (response["status"], response["error"]) == ("error", "misplaced")
    assert worker.runtime.topics.requests in worker.runtime.readiness()["misplaced_records"]


async def test_request_whose_deadline_has_passed(raw: Raw) -> None:
    own = request_id()
    await raw.request("user-3", {"v": 1, "request_id": own, "timeout_ms": 1_000}, age_s=60)
    assert (await raw.response(own))["error"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xc1 is no msgpack", "malformed"),
        (b"{not json", "malformed"),
        ({"v": 1, "k": 5}, "invalid_request"),
        (b"\x00" * TEN_MB, "too_large"),
    ],
    ids=["not-msgpack", "not-json", "no-request-id", "ten-megabytes"],
)
async def test_request_that_nobody_can_be_answered_for(raw: Raw, value: Any, reason: str) -> None:
    user = f"asker-{request_id()}"
    await raw.request(user, value)
    letter = await raw.dead_letter(user)
    assert letter["reason"] == reason
    assert letter["value_bytes"] == len(value) or isinstance(value, dict)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xc1 is no msgpack", "malformed"),
        ({"v": 1}, "invalid_event"),
        ({"v": 1, "item_id": 7}, "invalid_event"),
        (b"\x00" * TEN_MB, "too_large"),
    ],
    ids=["not-msgpack", "no-item", "mistyped-item", "ten-megabytes"],
)
async def test_event_that_cannot_be_taken_in(raw: Raw, value: Any, reason: str) -> None:
    user = f"viewer-{request_id()}"
    await raw.event(user, value)
    assert (await raw.dead_letter(user))["reason"] == reason


@pytest.mark.parametrize("role", ["events", "requests"])
async def test_a_batch_that_is_a_thousand_times_what_it_seems(
    raw: Raw, broker: Broker, worker: KafkaDriver, client: RecommendClient, role: str
) -> None:
    """Nothing of it is read, and what comes behind it is."""
    topic = getattr(worker.runtime.topics, role)
    await write_too_large(broker, topic, 0)
    letter = await raw.dead_letter(None, topic)
    assert (letter["reason"], letter["value"], letter["value_bytes"]) == ("too_large", None, None)
    assert f"a batch must decompress to at most {MAX_BATCH_BYTES} bytes, and it holds more" in letter["message"]
    position = await client.send_event(user_of(0), "item-1")
    assert (await client.recommend(user_of(0), timeout=20, after=position)).event_count > 0


def user_of(partition: int) -> str:
    assert partition_of is not None
    return next(user for n in range(100) if partition_of((user := f"user-{n}").encode()) == partition)


async def test_event_on_a_partition_that_is_not_its_keys(raw: Raw) -> None:
    await raw.event("user-4", {"v": 1, "item_id": "item-1"}, wrong_partition=True)
    assert (await raw.dead_letter("user-4"))["reason"] == "misplaced"


async def test_event_of_an_unknown_item_is_kept_without_tokens(
    client: RecommendClient, worker: KafkaDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts, is counted and named in the log once, and the answer is the one without it."""
    position = await client.send_event("user-5", "item-1")
    before = await client.recommend("user-5", timeout=20, after=position)
    counted = worker.runtime.setup.metrics.events_unknown_item._value.get()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            position = await client.send_event("user-5", "no-such-item")
        after = await client.recommend("user-5", timeout=20, after=position)
    assert (after.status, after.event_count) == (Status.OK, 3)
    assert [item.item_id for item in after.items] == [item.item_id for item in before.items]
    assert worker.runtime.setup.metrics.events_unknown_item._value.get() == counted + 2
    assert caplog.text.count("no-such-item") == 1


async def test_unknown_user_gets_what_is_popular(client: RecommendClient) -> None:
    response = await client.recommend("never-seen", k=3, timeout=20)
    assert response.status is Status.UNKNOWN_USER
    assert len(response.items) == 3


async def test_client_raises_the_error_of_the_response(client: RecommendClient) -> None:
    with pytest.raises(NothingLegal):
        await client.recommend("user-1", allow=["no-such-tag"], timeout=20)


async def test_client_does_not_send_a_message_that_is_too_large(client: RecommendClient) -> None:
    with pytest.raises(MessageTooLarge):
        await client.recommend("user-1", exclude=["i" * 250] * 10_000, timeout=20)
