"""What one worker does for those who ask it, end to end: read your writes, copies to `reply_to`, figures."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from aiokafka.admin import NewTopic

from tests.integration.raw import Raw
from tests.integration.workers import make_topics, until
from xgr_stream import Engine
from xgr_stream.client import RecommendClient
from xgr_stream.errors import InvalidRequest
from xgr_stream.stream import codec
from xgr_stream.stream.kafka_driver import KafkaDriver
from xgr_stream.stream.recommender import Recommender
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.testing.broker import Broker
from xgr_stream.types import CacheState, RecommendRequest, Shortfall, Status, Unscored

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.embedded]


async def test_an_answer_has_seen_ones_own_events(client: RecommendClient) -> None:
    async def use(user_id: str) -> None:
        for number in range(1, 6):
            position = await client.send_event(user_id, f"item-{number}")
            response = await client.recommend(user_id, k=3, timeout=20, after=position)
            assert (response.status, response.user_id) == (Status.OK, user_id)
            assert (response.event_count, response.event_offset) == (number, position.offset)

    await asyncio.gather(*(use(f"reader-{n}") for n in range(20)))


async def test_a_position_of_another_users_event_is_refused_by_partition(
    client: RecommendClient, worker: KafkaDriver
) -> None:
    """By the worker, for the client, and in process."""
    recommender = Recommender(worker.runtime.setup.config, worker.runtime.setup.metrics)
    recommender.bind(worker.runtime)
    own = await client.send_event("placed", "item-1")
    other = own._replace(partition=(own.partition + 1) % 4)
    for asking in (client, recommender):
        assert (await asking.recommend("placed", timeout=20, after=own)).event_offset == own.offset
        for answer in (asking.recommend("placed", after=other), asking.score("placed", ["item-1"], after=other)):
            with pytest.raises(InvalidRequest, match=rf"must be {own.partition}, .*, not {other.partition}: `after`"):
                await answer


async def test_a_request_may_ask_for_a_tail(client: RecommendClient, worker: KafkaDriver) -> None:
    """By the client and in process: the answer of a checkpoint with that tail, and one's own prefix stays warm."""
    with_tail = Engine.load(tiny_model(xgr={"tail": [5, 0]}), tiny_catalog())
    with_tail.append("asker", ["item-1", "item-2"])
    expected = [item.item_id for item in with_tail.recommend("asker", k=5)]
    recommender = Recommender(worker.runtime.setup.config, worker.runtime.setup.metrics)
    recommender.bind(worker.runtime)
    await client.send_event("asker", "item-1")
    position = await client.send_event("asker", "item-2")
    plain = await client.recommend("asker", k=5, timeout=20, after=position)
    for asking in (client, recommender):
        response = await asking.recommend("asker", k=5, tail=[5, 0], timeout=20)
        assert [item.item_id for item in response.items] == expected
        assert (response.cache, response.tail_computed) == (CacheState.WARM, True)
    again = await client.recommend("asker", k=5, timeout=20)
    assert (again.items, again.cache, again.tail_computed) == (plain.items, CacheState.WARM, False)


async def test_a_reply_to_topic_gets_a_copy(broker: Broker, raw: Raw) -> None:
    own = uuid.uuid4().hex
    topic = f"shop-answers-{own}"
    await make_topics(broker, NewTopic(topic, 1, 1))
    consumer = broker.connection.consumer(auto_offset_reset="earliest")
    consumer.subscribe([topic])
    await consumer.start()
    try:
        await raw.request("copied", {"v": 1, "request_id": own, "k": 3, "reply_to": topic})
        response = await raw.response(own)
        async with asyncio.timeout(15):
            copy = await consumer.getone()
    finally:
        await consumer.stop()
    assert copy.key == b"copied"
    assert codec.decode(copy.value, 1 << 20) == response
    assert (response["status"], len(response["items"])) == ("unknown_user", 3)


async def test_a_reply_to_topic_that_is_not_there_keeps_nobody_waiting(raw: Raw) -> None:
    own = uuid.uuid4().hex
    await raw.request("copied", {"v": 1, "request_id": own, "reply_to": f"nowhere-{own}"})
    assert (await raw.response(own))["status"] == "unknown_user"


async def test_a_client_asks_for_scores_and_for_what_is_unseen(client: RecommendClient) -> None:
    position = await client.send_event("scored", "item-1")
    response = await client.score("scored", ["item-1", "unheard-of"], timeout=20, after=position)
    assert [item.item_id for item in response.items] == ["item-1"]
    assert response.unscored == {"unheard-of": Unscored.UNKNOWN}
    everything = await client.recommend("scored", k=1_000, timeout=20)
    unseen = await client.recommend("scored", k=1_000, seen=True, min_score=-400.0, caps={"brand:*": 1}, timeout=20)
    assert everything.shortfall is unseen.shortfall is Shortfall.EXHAUSTED
    found = {item.item_id: item.score for item in everything.items}
    assert response.items[0].score == pytest.approx(found.pop("item-1"), abs=1e-4)
    assert {item.item_id for item in unseen.items} == set(found)
    with pytest.raises(InvalidRequest, match="candidates must hold 1 to 1024 items"):
        await client.score("scored", [])


async def test_figures_of_a_worker(client: RecommendClient, worker: KafkaDriver) -> None:
    """Every stage is observed, requests are counted by outcome and cache, and events are behind by none at last."""
    registry = worker.runtime.setup.metrics.registry

    def figure(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    position = await client.send_event("counted", "item-1")
    await client.recommend("counted", timeout=20, after=position)
    before = figure("xgr_requests_total", outcome="ok", cache="warm") or 0.0
    await client.recommend("counted", timeout=20)
    assert figure("xgr_requests_total", outcome="ok", cache="warm") == before + 1
    recommender = Recommender(worker.runtime.setup.config, worker.runtime.setup.metrics)
    recommender.bind(worker.runtime)
    response = await recommender.respond(RecommendRequest(uuid.uuid4().hex, "counted"))
    assert response.status is Status.OK
    assert figure("xgr_requests_total", outcome="ok", cache="warm") == before + 2
    for stage in ("wait", "append", "decode", "publish", "total"):
        assert figure("xgr_stage_seconds_count", stage=stage), stage
    await until(lambda: [figure("xgr_events_behind", partition=str(n)) for n in range(4)] == [0.0] * 4)


async def test_an_idle_worker_keeps_the_deadline_of_a_request_that_waits(raw: Raw) -> None:
    """Nothing else wakes it, and the deadline that it sleeps until is a later one."""
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    await raw.request("waiting", {"v": 1, "request_id": first, "timeout_ms": 60_000})
    assert (await raw.response(first))["status"] == "unknown_user"
    await asyncio.sleep(0.5)
    await raw.request("waiting", {"v": 1, "request_id": second, "min_offset": 10**12, "timeout_ms": 500})
    async with asyncio.timeout(5):
        response = await raw.response(second)
    assert (response["status"], response["error"]) == ("error", "deadline_exceeded")
