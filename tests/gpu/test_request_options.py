"""What requests may ask for besides the best items, on CUDA: equal to the CPU's answers, in whatever company."""

from __future__ import annotations

import pytest

from tests.gpu.test_engine import CASES, Draws
from tests.property.oracle import assert_same
from tests.property.users import append
from xgr_stream.engine import Engine
from xgr_stream.types import ItemFilter, RecommendRequest, RecommendResponse, Status

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
USERS = tuple(f"user-{i}" for i in range(4))


@pytest.fixture(params=[name for name in CASES if name != "fp8"], scope="module")  # where devices round apart
def engines(request: pytest.FixtureRequest) -> tuple[Engine, Engine, Draws]:
    case = CASES[request.param]
    engines = case.engine(8 << 20, device=DEVICE), case.engine(8 << 20)
    draws = Draws(case, 7)
    for user in USERS:
        history = draws.history(12)
        for engine in engines:
            append(engine, user, history)
    return *engines, draws


def answers(engine: Engine, requests: list[RecommendRequest]) -> list[RecommendResponse]:
    found = engine.answer([(request, engine.history.view(request.user_id)) for request in requests])
    engine.check_integrity()
    return found


def same(mine: RecommendResponse, theirs: RecommendResponse) -> None:
    assert (mine.status, mine.error, mine.shortfall) == (theirs.status, theirs.error, theirs.shortfall)
    assert mine.unscored == theirs.unscored
    assert_same(mine.items, theirs.items, len(theirs.items))


def test_what_is_seen_is_not_recommended(engines: tuple[Engine, Engine, Draws]) -> None:
    cuda, cpu, _ = engines
    wanted = [ItemFilter(seen=True), ItemFilter(seen=True, deny=("red",)), ItemFilter(allow=(("red", "blue"), "green"))]
    requests = [RecommendRequest(f"{u}-{i}", u, 300, 300, f) for u in USERS for i, f in enumerate(wanted)]
    for mine, theirs in zip(answers(cuda, requests), answers(cpu, requests), strict=True):
        same(mine, theirs)


def test_candidates_have_the_cpus_scores(engines: tuple[Engine, Engine, Draws]) -> None:
    cuda, cpu, draws = engines
    for _ in range(3):
        requests = [
            RecommendRequest(f"{user}-{count}", user, candidates=draws.items(count) or ["item-0"])
            for user in USERS
            for count in (1, 7, 100)
        ]
        requests.append(RecommendRequest("company", USERS[0], 5))
        for mine, theirs in zip(answers(cuda, requests), answers(cpu, requests), strict=True):
            same(mine, theirs)


def test_caps_take_more_beams(engines: tuple[Engine, Engine, Draws]) -> None:
    cuda, cpu, _ = engines
    requests = [RecommendRequest(user, user, 8, 8, caps={"*": 2}) for user in USERS]
    for mine, theirs in zip(answers(cuda, requests), answers(cpu, requests), strict=True):
        assert (mine.status, mine.shortfall) == (theirs.status, theirs.shortfall)
        assert len(mine.items) == len(theirs.items)


def test_what_is_drawn_is_what_the_cpu_draws(engines: tuple[Engine, Engine, Draws]) -> None:
    """But where rounding moves an item across another, which a hundred draws may show once or twice."""
    cuda, cpu, _ = engines
    requests = [
        RecommendRequest(f"{user}-{i}", user, 10, 16, ItemFilter(seen=i % 2 == 0), temperature=0.5 + i / 10, seed=i)
        for user in USERS
        for i in range(25)
    ]
    together = answers(cuda, requests)
    expected = answers(cpu, requests)
    items = [[[item.item_id for item in response.items] for response in side] for side in (together, expected)]
    assert sum(mine == theirs for mine, theirs in zip(*items, strict=True)) >= 0.95 * len(requests)
    for request, response in zip(requests[::9], together[::9], strict=True):
        assert response.status in (Status.OK, Status.UNKNOWN_USER)
        (alone,) = answers(cuda, [request])
        assert {item.item_id for item in alone.items} == {item.item_id for item in response.items}
