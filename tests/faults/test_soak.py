"""Short soaks on Apache Kafka: `xgr-stream soak` runs the long ones."""

from __future__ import annotations

import asyncio
import os

import pytest

from xgr_stream.cli.faults.plan import OF_THE_BROKER, Kind, Soak
from xgr_stream.cli.faults.run import soak
from xgr_stream.testing.broker import Broker

HOME = os.environ.get("XGR_TEST_KAFKA_HOME")

STREAM: tuple[Kind, ...] = ("rewind", "corrupt messages", "kill a worker", "stop the broker", "slow a worker")
HANDED_OVER: tuple[Kind, ...] = ("kill a worker", "a worker joins", "freeze a worker", "a worker leaves")
FENCED: tuple[Kind, ...] = ("freeze a worker", "kill a worker", "rewind", "a worker joins", "a worker leaves")


@pytest.mark.integration
@pytest.mark.timeout(300)
@pytest.mark.skipif(HOME is None, reason="needs Apache Kafka: XGR_TEST_KAFKA_HOME")
@pytest.mark.parametrize(
    ("seed", "kinds", "transactional", "standby"),
    [(102, STREAM, False, False), (103, FENCED, True, False), (104, HANDED_OVER, False, True)],
)
def test_nothing_is_lost_doubled_or_wrong(
    broker: Broker, seed: int, kinds: tuple[Kind, ...], transactional: bool, standby: bool
) -> None:
    said: list[str] = []
    plan = Soak(
        seed,
        seconds=20.0 if standby else 8.0,  # others follow, and then a worker must go
        users=12,
        events_per_s=40.0,
        requests_per_s=10.0,
        session_timeout_s=3.0,
        kinds=kinds,
        transactional=transactional,
        standby=standby,
    )
    home = HOME if set(kinds) & set(OF_THE_BROKER) else None  # a broker that is stopped can't be everybody's
    findings = asyncio.run(soak(plan, home, broker.bootstrap, said.append))
    assert findings.differences == [], "\n".join(said)
    assert findings.figures["events in histories"] == findings.figures["events written"] > 0
    assert findings.figures["requests answered"] == findings.figures["requests written"] > 0
    assert not standby or findings.figures["partitions taken on from a standby copy"] > 0
