"""The aiokafka consumer that a Faust app reads with: made by Faust, and set right as ours are."""

from __future__ import annotations

from functools import partial
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer

from xgr_stream.stream.connection import set_right

_MARK = "_xgr_sets_right"


def set_consumer_right(app: faust.App) -> None:
    """Before the app's consumer is started: its thread makes the client then. Does nothing the second time."""
    consumer: Any = app.consumer
    thread = consumer._thread
    if not hasattr(thread, _MARK):
        setattr(thread, _MARK, True)
        thread._create_consumer = partial(_made_right, thread._create_consumer)


def _made_right(make: Any, **options: Any) -> AIOKafkaConsumer:
    consumer: AIOKafkaConsumer = make(**options)
    set_right(consumer._client)
    return consumer
