"""Captured graphs within a budget of memory: an engine answers alike with room for few, and the device's memory stays
bounded however many are captured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from weakref import WeakSet

import pytest
import torch

from tests.garbage import Knot
from tests.gpu.test_engine import CASES
from tests.property.oracle import assert_same
from tests.property.users import ask, record
from xgr_stream.collector import collector_resting
from xgr_stream.engine import Engine, graph_cache
from xgr_stream.engine.graph_cache import GraphCache
from xgr_stream.engine.graphs import Graphs
from xgr_stream.engine.lanes import Lane
from xgr_stream.types import RecommendResponse, Status

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
MIB = 1 << 20
USERS = tuple(f"user-{number}" for number in range(5))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The key of each capture, while each graph seems to take one MiB: what a small one takes is not to be seen, since
    the driver takes memory for several at once."""
    keys: list[object] = []
    alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
    fastest = Graphs._fastest

    def counted(self: Graphs, key: object, *rest: object) -> torch.cuda.CUDAGraph:
        keys.append(key)
        graph = fastest(self, key, *rest)
        alive.add(graph)
        return graph

    monkeypatch.setattr(Graphs, "_fastest", counted)
    monkeypatch.setattr(graph_cache, "_bytes_in_use", lambda: len(alive) * MIB)
    return keys


def answers_of(engine: Engine) -> list[RecommendResponse]:
    """To each user alone, cold; then warm, in batches of several sizes."""
    answers = []
    for user in USERS:
        engine.forget([user])
        answers += ask(engine, (user, 10, 20))
        engine.forget([user])
        engine.warm([engine.history.view(user)])
    for together in (1, 2, 5):
        for first in range(0, len(USERS), together):
            answers += ask(engine, *((user, 10, 20) for user in USERS[first : first + together]))
    return answers


def test_an_engine_with_room_for_two_graphs_answers_as_one_with_room_for_all(captured: list[object]) -> None:
    case = CASES["plain"]
    few, all_of_them = (case.engine(8 << 20, device="cuda", graph_bytes=most * MIB) for most in (2, 1000))
    kept: list[int] = []
    captures = []
    for engine in (few, all_of_them):
        for number, user in enumerate(USERS):
            record(engine, user, [(f"item-{number + i}", None) for i in range(2 * number + 1)])
    for _ in range(2):
        answers = []
        for engine in (few, all_of_them):
            before = len(captured)
            answers.append(answers_of(engine))
            captures.append(len(captured) - before)
            kept.append(len(engine._work.graphs))
        for mine, theirs in zip(*answers, strict=True):
            assert mine.status is Status.OK
            assert_same(mine.items, theirs.items, 10, case.epsilon)
    few_first, all_first, few_again, all_again = captures
    assert kept == [2, all_first, 2, all_first]
    assert all_again == 0
    assert few_first >= all_first >= 6  # appends of three sizes, decodes of three
    assert few_again > 0
    for engine in (few, all_of_them):
        engine.check_integrity()


def kernels(x: torch.Tensor, count: int) -> Callable[[int], None]:
    """A step of so many, and of memory of its own."""

    def step(by: int) -> None:
        more = torch.full((1000,), by, device=CUDA)
        for _ in range(count):
            x.add_(more)

    return step


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="measures the device's memory, which others take, too")
def test_memory_stays_bounded_however_many_are_captured() -> None:
    lane, x = Lane(CUDA), torch.zeros(1000, device=CUDA, dtype=torch.int64)
    roomy = GraphCache(1 << 40)
    with lane.current(), torch.inference_mode():
        graphs = Graphs(lane, roomy)
        for key in range(64):
            if key == 32:  # by now the driver has nothing left of what other tests' graphs took
                halfway = roomy.bytes_used
            graphs.run(key, kernels(x, 3000), [1])
        each = (roomy.bytes_used - halfway) // 32
        assert each > 0
        assert len(roomy) == 64
        few = GraphCache(8 * each)
        graphs, before = Graphs(lane, few), graph_cache._bytes_in_use()
        for key in range(96):
            graphs.run(key, kernels(x, 3000), [1])
            assert graph_cache._bytes_in_use() - before <= 24 * each
        assert 2 <= len(few) <= 24


def test_garbage_does_not_end_a_capture() -> None:
    """As of an engine that was let go with a traceback: a collection in the middle would destroy its graphs."""
    lane, x = Lane(CUDA), torch.zeros(1000, device=CUDA, dtype=torch.int64)
    graphs = Graphs(lane, GraphCache(1 << 40))

    def another() -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with collector_resting(), torch.cuda.graph(graph):
            x.add_(1)
        return graph

    knots = [Knot(another()) for _ in range(4)]

    def step(by: int) -> None:
        x.add_(by)
        if torch.cuda.is_current_stream_capturing():
            knots.clear()
            assert len([[] for _ in range(200_000)]) == 200_000
        x.add_(by)

    with lane.current(), torch.inference_mode():
        graphs.run("key", step, [1])
        assert not knots
        torch.cuda.synchronize()
        x.zero_()
        graphs.run("key", step, [1])
        assert x.tolist() == [2] * 1000


def test_all_are_captured_anew_once_they_were_cleared() -> None:
    """Into another memory pool: torch captures into none that it has been given back."""
    lane, x = Lane(CUDA), torch.zeros(1000, device=CUDA, dtype=torch.int64)
    graphs = Graphs(lane, GraphCache(1 << 40))
    with lane.current(), torch.inference_mode():
        for _ in range(3):
            for key in (1, 2, 1):
                graphs.run(key, kernels(x, 5), [key])
                torch.cuda.synchronize()
                x.zero_()
                graphs.run(key, kernels(x, 5), [key])
                assert x.tolist() == [5 * key] * 1000
            graphs.clear()
