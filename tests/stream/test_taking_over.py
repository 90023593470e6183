"""Whoever takes a partition over goes on when nothing of its last transaction is open, and ends what is as it ended."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion

from tests.stream.transactional import transactional_publisher
from xgr_stream.stream import last_transaction as module
from xgr_stream.stream import transactions
from xgr_stream.stream.last_transaction import LastTransaction, timeout_ms


class Coordinator:
    """Of one id: what it says of the last transaction, and how often that is found open."""

    def __init__(self, last: LastTransaction | None, *, times_open: int = 0, epochs: Sequence[int] = ()) -> None:
        self.last = last
        self.times_open = times_open
        self.epochs = list(epochs)
        """Of those who take the id over, one after the other."""
        self.done: list[str] = []
        self.covered: set[TopicPartition] = set()

    async def last_transaction(self, *_: object) -> LastTransaction | None:
        return self.last

    async def is_open(self, *_: object) -> bool:
        self.times_open -= 1
        return self.times_open >= 0

    async def start_producer(self, *_: object, last_committed: bool) -> Any:
        self.done.append(f"taken over, last one committed: {last_committed}")
        return Producer(self, self.epochs.pop(0) if self.epochs else 1)


class Producer:
    def __init__(self, coordinator: Coordinator, epoch: int) -> None:
        self._coordinator = coordinator
        self._sender = SimpleNamespace(_do_add_offsets_to_txn=self._added)
        self._txn_manager = SimpleNamespace(
            maybe_add_partition_to_txn=coordinator.covered.add, producer_id=7, producer_epoch=epoch
        )
        led = {"rec-dead-letters": {1}}  # of two
        self.client = SimpleNamespace(cluster=SimpleNamespace(available_partitions_for_topic=led.get))

    async def _added(self, group: str) -> bool:
        return True

    async def partitions_for(self, topic: str) -> set[int]:
        return {0}

    async def begin_transaction(self) -> None: ...

    async def commit_transaction(self) -> None:
        self._coordinator.done.append("committed")

    async def abort_transaction(self) -> None:
        self._coordinator.done.append("aborted")

    async def stop(self) -> None: ...


async def take_over(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    publisher = transactional_publisher(SimpleNamespace(on_wake=lambda wake: None), SimpleNamespace(client=None))
    monkeypatch.setattr(transactions, "last_transaction", coordinator.last_transaction)
    monkeypatch.setattr(transactions, "start_producer", coordinator.start_producer)
    monkeypatch.setattr(transactions, "stop_client", Producer.stop)
    monkeypatch.setattr(publisher, "_is_open", coordinator.is_open)
    await publisher._take_over(3)
    return coordinator.done


@pytest.mark.parametrize("last", [None, LastTransaction(True, 7, 0), LastTransaction(False, 7, 0)])
async def test_nothing_is_ended_where_nothing_is_open(
    last: LastTransaction | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = last is not None and last.committed
    assert await take_over(Coordinator(last), monkeypatch) == [f"taken over, last one committed: {committed}"]


@pytest.mark.parametrize("committed", [True, False])
async def test_what_is_open_ends_as_the_transaction_did_and_is_looked_at_again(
    committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that goes away once more leaves the ending open, too."""
    coordinator = Coordinator(LastTransaction(committed, 7, 0), times_open=2)
    taken, ended = f"taken over, last one committed: {committed}", "committed" if committed else "aborted"
    assert await take_over(coordinator, monkeypatch) == [taken, ended, taken, ended, taken]
    where = [("rec-dead-letters", 1), ("rec-responses", 3), ("xgr-history-changelog", 3)]
    assert sorted(coordinator.covered) == [TopicPartition(*each) for each in where]  # not letters that nobody leads


async def test_one_that_began_meanwhile_and_was_fenced_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The former owner did not know yet. Its answers may have been written without their offsets."""
    coordinator = Coordinator(LastTransaction(True, 7, 0), times_open=1, epochs=[2])
    assert "aborted" in await take_over(coordinator, monkeypatch)


def test_the_timeout_says_how_the_last_transaction_ended_and_is_never_longer() -> None:
    for longest in (1_000, 1_001, 30_000):
        for committed in (True, False):
            timeout = timeout_ms(longest / 1000, last_committed=committed)
            assert timeout % 2 == committed
            assert longest - 2 <= timeout <= longest


async def test_a_broker_that_does_not_say_yet_what_it_knows_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.001)
    answers: list[object] = [("", "Empty", 30_001, 0, 7, 2)]

    async def send(*_: object) -> Any:
        asked.append(1)
        if len(asked) < 3 or not answers:
            raise IncompatibleBrokerVersion
        return SimpleNamespace(transaction_states=[(0, *cast(tuple[object, ...], answers[0]))])

    async def coordinator_lookup(*_: object) -> int:
        return 1

    client: Any = SimpleNamespace(send=send, coordinator_lookup=coordinator_lookup)
    asked: list[int] = []
    assert await module.last_transaction(client, "id") == LastTransaction(True, 7, 2)
    answers.clear()
    asked.clear()
    assert await module.last_transaction(client, "id") is None
