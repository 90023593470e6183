"""The broker that these tests talk to, and topics of each test's own.

XGR_TEST_KAFKA_HOME=dir: Apache Kafka from there; XGR_TEST_BROKER=host:port: one that runs already; else the embedded.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from xgr_stream.config import StreamConfig, TopicNames
from xgr_stream.testing.broker import ApacheKafka, Broker, EmbeddedBroker, OutsideBroker

LARGE_MESSAGES = "message.max.bytes=20000000"

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.timeout(60))


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    chosen: Broker
    if address := os.environ.get("XGR_TEST_BROKER"):
        chosen = OutsideBroker(address)
    elif home := os.environ.get("XGR_TEST_KAFKA_HOME"):
        chosen = ApacheKafka(home, properties=LARGE_MESSAGES)
    else:
        chosen = EmbeddedBroker()
    with chosen:
        yield chosen


@pytest.fixture
def topics() -> TopicNames:
    """Names that no other test uses."""
    own = uuid.uuid4().hex[:8]
    return TopicNames(*(f"{name}-{own}" for name in ("events", "requests", "responses", "dead", "changelog")))


@pytest.fixture
def config(topics: TopicNames) -> StreamConfig:
    return StreamConfig(topics=topics, shutdown_timeout_s=5.0)
