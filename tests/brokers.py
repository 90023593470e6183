"""The broker that tests talk to, and one node of Apache Kafka for all the processes that they run in.

XGR_TEST_KAFKA_HOME=dir: Apache Kafka from there; XGR_TEST_BROKER=host:port: one that runs already; else the embedded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.kafka_node import Addresses
    from xgr_stream.testing.broker import Broker

HOME = os.environ.get("XGR_TEST_KAFKA_HOME")
ADDRESS = os.environ.get("XGR_TEST_BROKER")

_shared = pytest.StashKey[Any]()
"""The node's addresses."""


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Told to each process that pytest-xdist starts. A node of one's own takes each 10 to 20 s of CPU time."""
    if HOME is None or ADDRESS is not None:
        return
    from tests.kafka_node import kafka_node

    stash = node.config.stash
    if _shared not in stash:
        running = contextlib.ExitStack()
        node.config.add_cleanup(running.close)
        stash[_shared] = running.enter_context(kafka_node(HOME))
    node.workerinput["kafka"] = tuple(stash[_shared])


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Addresses | None]:
    """The node of Apache Kafka, where the tests have one."""
    # Not before: the tests on a card run where there are no clients of Kafka.
    from tests.kafka_node import Addresses, kafka_node

    shared = getattr(request.config, "workerinput", {}).get("kafka")
    if shared is not None:
        yield Addresses(*shared)
    elif HOME is None or ADDRESS is not None:
        yield None
    else:
        with kafka_node(HOME) as addresses:
            yield addresses


@pytest.fixture(scope="session")
def broker(kafka: Addresses | None) -> Iterator[Broker]:
    """Others use it at the same time: topics and groups must have names of their test's own."""
    from xgr_stream.testing.broker import EmbeddedBroker, OutsideBroker

    address = ADDRESS or (kafka and kafka.bootstrap)
    with OutsideBroker(address) if address else EmbeddedBroker() as chosen:
        yield chosen
