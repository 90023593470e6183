"""Short soaks on Apache Kafka: `xgr-stream soak` runs the long ones."""

from __future__ import annotations

import asyncio
import os

import pytest

from xgr_stream.cli.faults.plan import Kind, Soak
from xgr_stream.cli.faults.run import soak

HOME = os.environ.get("XGR_TEST_KAFKA_HOME")

STREAM: tuple[Kind, ...] = ("rewind", "corrupt messages", "kill a worker", "stop the broker", "slow a worker")
FENCED: tuple[Kind, ...] = ("freeze a worker", "kill a worker", "rewind", "a worker joins", "a worker leaves")


@pytest.mark.integration
@pytest.mark.timeout(300)
@pytest.mark.skipif(HOME is None, reason="needs Apache Kafka: XGR_TEST_KAFKA_HOME")
@pytest.mark.parametrize(("seed", "kinds", "transactional"), [(102, STREAM, False), (103, FENCED, True)])
def test_nothing_is_lost_doubled_or_wrong(seed: int, kinds: tuple[Kind, ...], transactional: bool) -> None:
    said: list[str] = []
    plan = Soak(
        seed,
        seconds=8.0,
        users=12,
        events_per_s=40.0,
        requests_per_s=10.0,
        session_timeout_s=3.0,
        kinds=kinds,
        transactional=transactional,
    )
    findings = asyncio.run(soak(plan, HOME, None, said.append))
    assert findings.differences == [], "\n".join(said)
    assert findings.figures["events in histories"] == findings.figures["events written"] > 0
    assert findings.figures["requests answered"] == findings.figures["requests written"] > 0
