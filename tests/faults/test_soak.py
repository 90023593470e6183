"""Short soaks on Apache Kafka: `xgr-stream soak` runs the long ones."""

from __future__ import annotations

import asyncio
import os

import pytest

from xgr_stream.cli.faults.plan import OF_THE_BROKER, Kind, Soak
from xgr_stream.cli.faults.run import soak
from xgr_stream.testing.broker import Broker

HOME = os.environ.get("XGR_TEST_KAFKA_HOME")

# In its seed's order the rewind is the last: what comes soon after it finds workers that do not serve yet.
EVERY: tuple[Kind, ...] = (
    *("rewind", "corrupt messages", "stop the broker", "slow a worker"),
    *("kill a worker", "a worker joins", "freeze a worker", "a worker leaves"),
)
FENCED: tuple[Kind, ...] = ("freeze a worker", "kill a worker", "rewind", "a worker joins", "a worker leaves")


@pytest.mark.integration
@pytest.mark.timeout(300)
@pytest.mark.skipif(HOME is None, reason="needs Apache Kafka: XGR_TEST_KAFKA_HOME")
@pytest.mark.parametrize(
    ("seed", "seconds", "kinds", "transactional"),
    [(56733, 12.0, EVERY, False), (103, 8.0, FENCED, True)],
)
def test_nothing_is_lost_doubled_or_wrong(
    broker: Broker, seed: int, seconds: float, kinds: tuple[Kind, ...], transactional: bool
) -> None:
    said: list[str] = []
    plan = Soak(
        seed,
        seconds=seconds,
        users=12,
        events_per_s=40.0,
        requests_per_s=10.0,
        session_timeout_s=3.0,
        kinds=kinds,
        transactional=transactional,
        standby=not transactional,
    )
    home = HOME if set(kinds) & set(OF_THE_BROKER) else None  # a broker that is stopped can't be everybody's
    findings = asyncio.run(soak(plan, home, broker.bootstrap, said.append))
    assert findings.differences == [], "\n".join(said)
    assert findings.figures["events in histories"] == findings.figures["events written"] > 0
    assert findings.figures["requests answered"] == findings.figures["requests written"] > 0
    assert transactional or findings.figures["partitions taken on from a standby copy"] > 0
