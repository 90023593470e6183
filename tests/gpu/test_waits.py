"""A batch waits for the device once, when its answers are due, and a warm one takes no memory of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.gpu.test_engine import CASES
from tests.property.users import append, record
from xgr_stream.engine import Engine
from xgr_stream.engine.staging import HOST_BUFFERS
from xgr_stream.history import HistoryView
from xgr_stream.testing.models import TAGS
from xgr_stream.types import CacheState, ItemFilter, RecommendRequest, RecommendResponse, Status

pytestmark = pytest.mark.gpu

WARM_UP = 2 + HOST_BUFFERS
"""Batches, after which each buffer has been used."""
BUSY_CYCLES = 100_000_000
"""Of the device, before a batch: some 50 ms, in which a batch is begun."""

EXCLUDED = ItemFilter.of([f"item-{i}" for i in range(40)], [], [])
CAPTURED: dict[str, list[RecommendRequest]] = {
    "one": [RecommendRequest("0", "user-0", 10, 20)],
    "three of unequal widths": [
        RecommendRequest(str(i), f"user-{i}", k, width) for i, (k, width) in enumerate([(5, 8), (10, 40), (1, 17)])
    ],
    "two of one user": [RecommendRequest(str(i), "user-0", 5, width) for i, width in enumerate([16, 30])],
    "tags": [
        RecommendRequest("0", "user-0", 5, 20, ItemFilter.of([], [TAGS[0]], [])),
        RecommendRequest("1", "user-1", 5, 20, ItemFilter.of([], [], [TAGS[1]])),
    ],
    "excluded": [RecommendRequest(str(i), f"user-{i}", 5, 20, EXCLUDED) for i in range(2)],
}
PARTLY_CAPTURED: dict[str, list[RecommendRequest]] = {
    "a tail of its own": [RecommendRequest("0", "user-0", 5, 20, tail=(3, 1))],
    "drawn": [RecommendRequest(str(i), f"user-{i}", 5, 20, temperature=1.0, seed=i) for i in range(2)],
    "scored": [RecommendRequest("0", "user-0", candidates=("item-1", "item-2", "item-3"))],
}
"""Of these the device does a part that is no graph, in memory that torch's allocator has at hand: it may be asked."""


@pytest.fixture(scope="module", params=["plain", "fp8"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    case = replace(CASES[request.param], max_events=200)  # no window moves
    engine = case.engine(8 << 20, device="cuda")
    for number in range(3):
        append(engine, f"user-{number}", [(f"item-{number + i}", None) for i in range(2 + number)])
    yield engine
    engine.check_integrity()


class Waits(list[str]):
    """What the host waited for, each by its name. Events that have passed are not: whether a buffer of four batches ago
    has been read is asked so, and not waited for."""

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Within, what torch itself waits for is an error."""

        def noted(name: str, function: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any, **options: Any) -> None:
                if name != "Event.synchronize" or not args[0].query():
                    self.append(name)
                function(*args, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for owner in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):
                name = f"{owner.__name__}.synchronize"
                patch.setattr(owner, "synchronize", noted(name, owner.synchronize))
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")


def batch_of(
    engine: Engine, requests: list[RecommendRequest], pending: bool
) -> list[tuple[RecommendRequest, HistoryView | None]]:
    """The batch, behind an event of each of its users with `pending`."""
    if pending:
        for user in {request.user_id for request in requests}:
            record(engine, user, [("item-7", None)])
    return [(request, engine.history.view(request.user_id)) for request in requests]


def answered(
    engine: Engine, batch: list[tuple[RecommendRequest, HistoryView | None]]
) -> tuple[list[RecommendResponse], list[str], list[str]]:
    """The answers, and what was waited for while the batch was begun, and then while it was finished."""
    waits = Waits()
    with torch.cuda.stream(engine._work.decode_lane.stream):
        torch.cuda._sleep(BUSY_CYCLES)
    with waits.counted():
        answers = engine.begin(batch)
        in_begin = [*waits]
        assert not answers.done()
        responses = answers.finish()
    return responses, in_begin, waits[len(in_begin) :]


def check(engine: Engine, requests: list[RecommendRequest], pending: bool) -> dict[str, int]:
    """Answer such batches, and check what they wait for; returns by how much the allocator's counters grew."""
    for _ in range(WARM_UP):
        engine.answer(batch_of(engine, requests, pending))
    names = ("allocation.all.allocated", "num_device_alloc", "num_alloc_retries", "allocated_bytes.all.current")
    before = torch.cuda.memory_stats()
    for _ in range(2 * HOST_BUFFERS):
        responses, in_begin, in_finish = answered(engine, batch_of(engine, requests, pending))
        assert in_begin == []
        assert in_finish == ["Event.synchronize"]
        assert {response.status for response in responses} == {Status.OK}
        assert {response.cache for response in responses} == {CacheState.APPENDED if pending else CacheState.WARM}
    after = torch.cuda.memory_stats()
    return {name: after[name] - before[name] for name in names}


@pytest.mark.parametrize("pending", [False, True], ids=["warm", "with events to append"])
@pytest.mark.parametrize("name", CAPTURED)
def test_a_batch_waits_once_and_asks_for_no_memory(engine: Engine, name: str, pending: bool) -> None:
    assert set(check(engine, CAPTURED[name], pending).values()) == {0}


@pytest.mark.parametrize("pending", [False, True], ids=["warm", "with events to append"])
@pytest.mark.parametrize("name", PARTLY_CAPTURED)
def test_what_is_no_graph_waits_once_too_and_takes_none_of_the_devices_memory(
    engine: Engine, name: str, pending: bool
) -> None:
    grew = check(engine, PARTLY_CAPTURED[name], pending)
    assert grew["num_device_alloc"] == grew["num_alloc_retries"] == grew["allocated_bytes.all.current"] == 0
