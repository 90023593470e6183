"""The broker that tests talk to, and one node of Apache Kafka for all the processes that they run in.

XGR_TEST_KAFKA_HOME=dir: Apache Kafka from there; XGR_TEST_BROKER=host:port: one that runs already; else the embedded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from xgr_stream.testing.broker import ApacheKafka, Broker, EmbeddedBroker, OutsideBroker

HOME = os.environ.get("XGR_TEST_KAFKA_HOME")
ADDRESS = os.environ.get("XGR_TEST_BROKER")

# Large messages, and compaction while a test runs.
PROPERTIES = "message.max.bytes=20000000\nlog.cleaner.backoff.ms=500"

_shared = pytest.StashKey[ApacheKafka]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Told to each process that pytest-xdist starts. A node of one's own takes each 10 to 20 s of CPU time."""
    if HOME is None or ADDRESS is not None:
        return
    stash = node.config.stash
    if _shared not in stash:
        stash[_shared] = ApacheKafka(HOME, properties=PROPERTIES)
        node.config.add_cleanup(stash[_shared].stop)
        stash[_shared].start()
    node.workerinput["kafka"] = stash[_shared].bootstrap


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Others use it at the same time: topics and groups must have names of their test's own."""
    shared = getattr(request.config, "workerinput", {}).get("kafka")
    chosen: Broker
    if ADDRESS or shared:
        chosen = OutsideBroker(ADDRESS or shared)
    elif HOME:
        chosen = ApacheKafka(HOME, properties=PROPERTIES)
    else:
        chosen = EmbeddedBroker()
    with chosen:
        yield chosen
