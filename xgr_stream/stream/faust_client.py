"""The aiokafka consumer under a Faust app: made by Faust, on a thread of its own, and set right as ours are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer

from xgr_stream.stream.connection import set_right
from xgr_stream.stream.group_member import CHECK_INTERVAL_S, Admission, end_when_taken_over, look_for_topics

_MARK = "_xgr_sets_right"


def set_consumer_right(app: faust.App, on_refused: Callable[[BaseException], object]) -> None:
    """Before the app's consumer is started: its thread makes the client then. `on_refused` is called there with what
    keeps it out of the group for good; the last one that was given, of an app that starts again."""
    consumer: Any = app.consumer
    thread = consumer._thread
    if not hasattr(thread, _MARK):
        thread._create_consumer = partial(_made_right, thread._create_consumer, app)
    setattr(thread, _MARK, on_refused)


def _made_right(
    make: Callable[..., AIOKafkaConsumer], app: faust.App, loop: asyncio.AbstractEventLoop
) -> AIOKafkaConsumer:
    consumer = make(loop=loop)
    set_right(consumer._client)
    conf: Any = app.conf
    made_by: Any = app.consumer
    if conf.consumer_group_instance_id:
        timeout_ms = round(conf.broker_session_timeout * 1000)
        end_when_taken_over(consumer, conf.consumer_group_instance_id, timeout_ms)
    watching = loop.create_task(_until_refused(consumer, conf.id, getattr(made_by._thread, _MARK)))
    setattr(consumer, _MARK, watching)  # the loop itself keeps none
    return consumer


async def _until_refused(
    consumer: AIOKafkaConsumer, group_id: str, on_refused: Callable[[BaseException], object]
) -> None:
    admission = Admission(consumer, group_id)
    while not consumer._closed:
        await asyncio.sleep(CHECK_INTERVAL_S)
        look_for_topics(consumer)
        try:
            admission.check()
        except Exception as error:  # noqa: BLE001  whatever it is, Faust would never hear of it
            on_refused(error)
            return
