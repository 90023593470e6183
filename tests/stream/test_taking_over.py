"""A partition's last transaction is ended again before anything else of it, and that is not broken off."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from xgr_stream.config import TopicNames, TransactionConfig
from xgr_stream.metrics import Metrics
from xgr_stream.stream.connection import Connection
from xgr_stream.stream.transactions import TransactionalPublisher
from xgr_stream.testing.clock import ManualClock


@pytest.fixture
async def publisher() -> TransactionalPublisher:
    processor: Any = SimpleNamespace(on_wake=lambda wake: None)
    return TransactionalPublisher(
        TransactionConfig(),
        Connection("localhost:1"),
        group_id="group",
        topics=TopicNames(),
        on_lost=lambda *_: None,
        processor=processor,
        producer=SimpleNamespace(),
        new_producer=None,
        clock=ManualClock(),
        metrics=Metrics(),
        on_progress=lambda *_: None,
        on_failure=pytest.fail,
    )


@pytest.mark.parametrize("fails", [False, True])
async def test_a_rebalance_waits_for_it(
    publisher: TransactionalPublisher, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Between two steps of it nobody else could tell how that transaction had ended."""
    go_on, ended = asyncio.Event(), []

    async def end_again(number: int) -> None:
        await go_on.wait()
        ended.append(number)
        if fails:
            raise KafkaConnectionError("it is away")

    monkeypatch.setattr(publisher, "_end_again", end_again)
    opening = asyncio.create_task(publisher.open(3))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await publisher.settle(0.01)
    assert ended == []
    settling = asyncio.create_task(publisher.settle(10))
    go_on.set()
    await settling
    assert ended == [3]
    await publisher.stop()


async def test_another_attempt_knows_how_the_transaction_had_ended(
    publisher: TransactionalPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one took the id over, from when on the coordinator does not say."""
    states, done = [False], []

    async def was_committed(*_: object) -> bool:
        return states.pop()

    class Producer:
        def __init__(self) -> None:
            self._sender = SimpleNamespace(_do_add_offsets_to_txn=self._added)
            self._txn_manager = SimpleNamespace(maybe_add_partition_to_txn=lambda tp: None)

        async def _added(self, group: str) -> bool:
            return True

        async def partitions_for(self, topic: str) -> set[int]:
            if not done:
                done.append("failed")
                raise KafkaConnectionError("it is away")
            return {0}

        async def begin_transaction(self) -> None: ...

        async def commit_transaction(self) -> None:
            done.append("committed")

        async def abort_transaction(self) -> None:
            done.append("aborted")

        async def stop(self) -> None: ...

    async def start(number: int) -> Any:
        return Producer()

    monkeypatch.setattr("xgr_stream.stream.transactions.was_committed", was_committed)
    monkeypatch.setattr("xgr_stream.stream.transactions.stop_client", Producer.stop)
    monkeypatch.setattr(publisher, "_start_producer", start)
    publisher._producer = SimpleNamespace(client=None)  # type: ignore[assignment]
    with pytest.raises(KafkaConnectionError):
        await publisher._end_again(3)
    await publisher._end_again(3)
    assert done == ["failed", "aborted"]
