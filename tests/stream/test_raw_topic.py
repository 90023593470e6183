"""Our agents get every record of a topic that other agents of the app can't decode."""

from __future__ import annotations

import asyncio
from typing import Any

import faust
import pytest
from faust.transport.conductor import ConductorCompiler
from faust.types import TP, ConsumerMessage

from xgr_stream.stream.faust_topic import raw_topic

VISITS = TP("visits", 2)


class Visit(faust.Record, serializer="json"):
    user_id: str
    price: float


class Ordered(list[Any]):
    """Faust hands a record to a set of channels, in any order; here in one that the test sets."""

    def __sub__(self, other: set[Any]) -> list[Any]:
        return [channel for channel in self if channel not in other]


def message(offset: int, value: bytes) -> ConsumerMessage:
    return ConsumerMessage(
        VISITS.topic, VISITS.partition, offset, 0.0, 0, {}, b"user-7", value, None, tp=VISITS, generation_id=0
    )


@pytest.mark.parametrize("ours_first", [True, False])
async def test_a_record_that_another_agent_cannot_decode_is_ours_to_acknowledge(tmp_path: Any, ours_first: bool):
    app = faust.App("test", broker="kafka://127.0.0.1:1", web_enabled=False, datadir=tmp_path, autodiscover=False)
    app.flow_control.resume()
    ours = raw_topic(app, VISITS.topic).clone(is_iterator=True)
    theirs = app.topic(VISITS.topic, value_type=Visit)
    app.topics._acking_topics.add(VISITS.topic)
    deliver = ConductorCompiler().build(app.topics, VISITS, Ordered([ours, theirs] if ours_first else [theirs, ours]))
    consumer: Any = app.consumer
    consumer._committed_offset[VISITS] = None

    for offset, value in enumerate([b'{"user_id": "user-7"}', b"{broken", b'{"user_id": "user-7", "price": 1.0}']):
        await deliver(message(offset, value))
        event = await asyncio.wait_for(ours.get(), 20)
        assert (event.message.offset, event.value) == (offset, value)
        assert consumer._acked[VISITS] == list(range(offset))
        event.ack()
        if offset == 2:
            assert consumer._acked[VISITS] == [0, 1], "their agent has not acknowledged the record that it got"
        else:
            assert consumer._acked[VISITS] == list(range(offset + 1))
