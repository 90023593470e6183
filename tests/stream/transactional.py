"""A transactional publisher without a broker."""

from __future__ import annotations

from typing import Any

import pytest

from xgr_stream.config import TopicNames, TransactionConfig
from xgr_stream.metrics import Metrics
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.transactions import TransactionalPublisher
from xgr_stream.testing.clock import ManualClock


def transactional_publisher(processor: Any, producer: Any) -> TransactionalPublisher:
    return TransactionalPublisher(
        TransactionConfig(),
        Connection("localhost:1"),
        group_id="group",
        topics=TopicNames(),
        on_lost=lambda *_: None,
        processor=processor,
        producer=producer,
        new_producer=None,
        clock=ManualClock(),
        metrics=Metrics(),
        on_progress=lambda *_: None,
        on_failure=pytest.fail,
    )
