"""The broker that tests talk to, and one node of Apache Kafka for all the processes that they run in.

XGR_TEST_KAFKA_HOME=dir: Apache Kafka from there; XGR_TEST_BROKER=host:port: one that runs already; else the embedded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xgr_stream.testing.broker import Broker

HOME = os.environ.get("XGR_TEST_KAFKA_HOME")
ADDRESS = os.environ.get("XGR_TEST_BROKER")

# Large messages, and compaction while a test runs. A node whose heartbeat is late on a busy machine is not fenced: it
# would leave itself out of its metadata, upon which aiokafka's coordinator fails an assertion.
PROPERTIES = "message.max.bytes=20000000\nlog.cleaner.backoff.ms=500\nbroker.session.timeout.ms=60000"

_shared = pytest.StashKey[Any]()
"""The node."""


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Told to each process that pytest-xdist starts. A node of one's own takes each 10 to 20 s of CPU time."""
    if HOME is None or ADDRESS is not None:
        return
    from xgr_stream.testing.broker import ApacheKafka

    stash = node.config.stash
    if _shared not in stash:
        stash[_shared] = ApacheKafka(HOME, properties=PROPERTIES)
        node.config.add_cleanup(stash[_shared].stop)
        stash[_shared].start()
    node.workerinput["kafka"] = stash[_shared].bootstrap


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Others use it at the same time: topics and groups must have names of their test's own."""
    # Not before: the tests on a card run where there are no clients of Kafka.
    from xgr_stream.testing.broker import ApacheKafka, EmbeddedBroker, OutsideBroker

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
