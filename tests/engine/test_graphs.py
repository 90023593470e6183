"""Captured graphs are kept within their budget of memory, on a device that is made up: it says what is in use, and the
graphs write down what they do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
import triton

from tests.garbage import Knot
from xgr_stream.engine.graph_cache import GraphCache
from xgr_stream.engine.graphs import Graphs
from xgr_stream.engine.lanes import Lane

TOTAL = 1000
CPU = torch.device("cpu")


@dataclass
class Device:
    """A graph takes memory when it is first replayed; where the driver keeps what it took, the next ones get it."""

    driver_keeps: bool = False
    used: int = 100
    spare: int = 0
    of_torch: int = 50
    pools: list[object] = field(default_factory=list)
    """Of each capture, the pool that it was told to share."""
    replayed: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    """Captures that broke off, since their thread destroyed another graph meanwhile."""
    while_it_looks: Callable[[], None] = lambda: None
    """What another thread does then."""

    def take(self, size: int) -> None:
        reused = min(size, self.spare)
        self.spare -= reused
        self.used += size - reused

    def give_back(self, size: int) -> None:
        if self.driver_keeps:
            self.spare += size
        else:
            self.used -= size

    def mem_get_info(self) -> tuple[int, int]:
        self.while_it_looks()
        return TOTAL - self.used, TOTAL


class Graph:
    """What is captured into it is named by the step."""

    device: Device
    capturing: Graph | None = None

    def __init__(self) -> None:
        self.name, self.size, self._ran = "", 0, False
        self._on = self.device

    def pool(self) -> object:
        return f"the pool of {self.name[0]}"

    def replay(self) -> None:
        if not self._ran:
            self._on.take(self.size)
        self._ran = True
        self._on.replayed.append(self.name)

    def __del__(self) -> None:
        if Graph.capturing is not None:
            self._on.ended.append(Graph.capturing.name)
        if self._ran:
            self._on.give_back(self.size)


@contextmanager
def capturing(graph: Graph, *, pool: object, **_: object) -> Iterator[None]:
    Graph.device.pools.append(pool)
    Graph.capturing = graph
    yield
    Graph.capturing = None


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(Graph, "device", device, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", device.mem_get_info)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: device.of_torch)
    return device


class Steps:
    """Graphs of one kind."""

    def __init__(self, cache: GraphCache) -> None:
        self._graphs = Graphs(Lane(CPU), cache)
        self.captured = 0

    def run(self, name: str, size: int = 10) -> None:
        def step(size: int) -> None:
            if Graph.capturing is not None:
                self.captured += 1
                Graph.capturing.name, Graph.capturing.size = name, size

        self._graphs.run(name, step, [size])
        assert Graph.device.replayed[-1] == name

    def clear(self) -> None:
        self._graphs.clear()


def test_as_many_are_kept_as_there_is_room_for_and_the_least_recently_used_goes(device: Device) -> None:
    cache = GraphCache(39)
    decodes, appends = Steps(cache), Steps(cache)
    for name in ("d1", "d2"):
        decodes.run(name)
    appends.run("a1")
    assert (cache.bytes_used, device.used) == (30, 130)
    decodes.run("d1")
    appends.run("a2")  # d2 has to go
    assert (len(cache), cache.bytes_used, device.used) == (3, 30, 130)
    for steps, name in ((decodes, "d1"), (appends, "a1"), (appends, "a2")):
        steps.run(name)
    assert (decodes.captured, appends.captured) == (2, 2)
    decodes.run("d2")
    assert decodes.captured == 3


def test_one_that_is_larger_than_the_budget_is_kept_alone(device: Device) -> None:
    cache = GraphCache(15)
    steps = Steps(cache)
    for name, size in (("a1", 10), ("a2", 40), ("a2", 40)):
        steps.run(name, size)
    assert (len(cache), steps.captured, device.used) == (1, 2, 140)
    steps.run("a1")
    assert (len(cache), steps.captured) == (1, 3)


def test_garbage_does_not_end_a_capture(device: Device) -> None:
    """As of an engine that was let go with a traceback: a collection in the middle would destroy its graphs."""
    graphs = Graphs(Lane(CPU), GraphCache(1000))

    def step(_: int) -> None:
        if Graph.capturing is not None:
            Graph.capturing.name = "b1"
            Knot(Graph())
            assert len([[] for _ in range(200_000)]) == 200_000

    graphs.run("b1", step, [1])
    assert not device.ended


def test_none_is_dropped_while_it_may_run(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    cache = GraphCache(25)
    steps = Steps(cache)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: used.append(device.used))
    for name in ("a1", "a2", "a2"):
        steps.run(name)
    assert used == [100, 110]  # before a capture
    steps.run("a3")
    assert used[2:] == [120, 130]  # and while all three were there
    steps.clear()
    assert used[4:] == [120]
    assert device.used == 100


@pytest.mark.parametrize("driver_keeps", [False, True])
def test_memory_stays_bounded_whether_or_not_the_driver_gives_back_what_was_dropped(
    device: Device, driver_keeps: bool
) -> None:
    device.driver_keeps = driver_keeps
    cache, rng = GraphCache(200), random.Random(1)
    kinds = [Steps(cache), Steps(cache)]
    for _ in range(2000):
        kind, number = rng.randrange(2), rng.randrange(40)
        kinds[kind].run(f"{kind}{number}", 8 + 6 * kind + number % 3)
        assert device.used - 100 <= 200 + 2 * 16  # a driver that keeps what was dropped has it besides
    assert len(cache) >= 12  # of 80, of 12 units each


def test_a_pool_goes_with_the_last_graph_in_it(device: Device) -> None:
    cache = GraphCache(100)
    decodes, appends = Steps(cache), Steps(cache)
    for steps, name in ((decodes, "d1"), (appends, "a1"), (decodes, "d2"), (appends, "a2")):
        steps.run(name)
    assert device.pools == [None, None, "the pool of d", "the pool of a"]
    decodes.clear()
    for steps, name in ((appends, "a3"), (decodes, "d1"), (decodes, "d2")):
        steps.run(name)
    assert device.pools[4:] == ["the pool of a", None, "the pool of d"]
    assert (decodes.captured, appends.captured) == (4, 3)


def test_what_another_thread_takes_meanwhile_is_not_the_graphs(device: Device) -> None:
    cache = GraphCache(100)

    def other_thread() -> None:
        device.used, device.of_torch = device.used + 300, device.of_torch + 300
        device.while_it_looks = lambda: None

    device.while_it_looks = other_thread
    steps = Steps(cache)
    steps.run("a1")
    assert (cache.bytes_used, device.used) == (10, 410)


@pytest.mark.parametrize("driver_keeps", [False, True])
def test_what_another_process_takes_meanwhile_drops_no_graphs(
    device: Device, driver_keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did, all of them with each capture from then on: what a dropped graph seemed to have, the next one got."""
    monkeypatch.setattr("xgr_stream.engine.graph_cache.MOST_BYTES", 100)
    device.driver_keeps = driver_keeps
    cache, take = GraphCache(200), device.take

    def take_beside_others(size: int) -> None:
        take(size)
        device.used += 500
        monkeypatch.setattr(device, "take", take)

    steps = Steps(cache)
    steps.run("a1")
    monkeypatch.setattr(device, "take", take_beside_others)
    for name in ("a2", "a3", "a1", "a2", "a3"):
        steps.run(name)
    assert device.used == 630
    assert (len(cache), steps.captured) == (3, 3)


def test_of_several_ways_the_others_memory_is_not_counted(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = GraphCache(100)
    graphs = Graphs(Lane(CPU), cache)
    monkeypatch.setattr(Graphs, "_replay_ms", lambda _, graph: float(graph.size))

    def step(size: int) -> None:
        if Graph.capturing is not None:
            Graph.capturing.name, Graph.capturing.size = f"a{size}", size

    graphs.run("a", step, [30, 7, 20])
    assert (cache.bytes_used, device.used, device.replayed[-1]) == (7, 107, "a7")
    assert device.pools == [None, "the pool of a", "the pool of a"]


@pytest.mark.parametrize("too_large", [[1], [0, 2], [0, 1, 2]])
def test_a_variant_that_does_not_fit_on_the_device_is_left_out(device: Device, too_large: list[int]) -> None:
    graphs, tried = Graphs(Lane(CPU), GraphCache(100)), []

    def step(variant: int) -> None:
        tried.append(variant)
        if variant in too_large:
            raise triton.OutOfResources(300_000, 232_448, "shared memory")
        if Graph.capturing is not None:
            Graph.capturing.name = f"variant {variant}"

    if len(too_large) == 3:
        with pytest.raises(triton.OutOfResources, match="shared memory"):
            graphs.run("a", step, range(3))
        return
    graphs._times_ms = lambda graphs: list(range(len(graphs)))  # the first is the fastest
    graphs.run("a", step, range(3))
    fits = [variant for variant in range(3) if variant not in too_large]
    assert tried == [0, 1, 2, *fits]
    assert device.replayed[-1] == f"variant {fits[0]}"


def test_what_else_a_variant_raises_is_raised(device: Device) -> None:
    graphs = Graphs(Lane(CPU), GraphCache(100))
    with pytest.raises(ZeroDivisionError):
        graphs.run("a", lambda variant: 1 / variant, range(2))
