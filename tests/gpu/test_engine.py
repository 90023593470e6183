"""The design's invariants 1 to 5 on CUDA: graphs, streams and kernels against the oracles of the property tests.

A few shapes instead of hypothesis's hundreds, because every new one compiles kernels and captures graphs; what happens
to users, in which order, with which filters and widths, is random."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.property.cases import ACTIONS, Case
from tests.property.oracle import assert_same
from tests.property.users import History, append, ask, record
from xgr_stream.engine import Engine, Switches
from xgr_stream.testing.models import TAGS
from xgr_stream.types import CacheState, ItemFilter, RecommendRequest, Status

pytestmark = pytest.mark.gpu

USERS = tuple(f"user-{i}" for i in range(6))
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 64}

CASES = {
    "plain": Case(
        (16, 9, 16), 300, 1, framed=False, page_size=16, max_batch_tokens=512, max_events=16, model_config=HEADS
    ),
    "framed": Case((7, 5), 60, 2, framed=True, page_size=64, max_batch_tokens=40, max_events=9, model_config=HEADS),
    "vocabulary": Case(
        (8, 8, 8, 8), 200, 3, framed=True, page_size=16, max_batch_tokens=512, max_events=12, normalizer="vocabulary",
        model_config=HEADS,
    ),
    "legal": Case(
        (12, 12, 12), 150, 4, framed=False, page_size=32, max_batch_tokens=512, max_events=30, normalizer="legal",
        model_config=HEADS,
    ),
    "fp8": Case(
        (16, 9, 16), 300, 5, framed=True, page_size=16, max_batch_tokens=40, max_events=16, kv_cache_dtype="fp8",
        model_config=HEADS,
    ),
}  # fmt: skip


@pytest.fixture(params=list(CASES), scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def engine(case: Case) -> Iterator[Engine]:
    """One engine for all of a case's tests, which leave their users behind: as it serves, too."""
    engine = case.engine(8 << 20, device="cuda")
    yield engine
    engine.check_integrity()


class Draws:
    """Random histories and filters of a case."""

    def __init__(self, case: Case, seed: int) -> None:
        self._case = case
        self._random = random.Random(seed)

    def items(self, count: int) -> list[str]:
        known = [f"item-{self._random.randrange(self._case.num_items)}" for _ in range(count)]
        return [item if self._random.random() < 0.9 else "item-of-another-catalog" for item in known]

    def history(self, most: int) -> History:
        items = self.items(self._random.randint(1, most))
        return [(item, self._random.choice((None, *ACTIONS, "unheard-of"))) for item in items]

    def filter(self) -> ItemFilter:
        tags = [tag for tag in TAGS if self._random.random() < 0.4]
        kind = self._random.choice(("none", "exclude", "allow", "deny", "both"))
        exclude = self.items(12) if kind in ("exclude", "both") else []
        return ItemFilter.of(exclude, tags if kind in ("allow", "both") else [], tags if kind == "deny" else [])

    def width(self) -> int:
        return self._random.randint(5, 40)

    def shuffled(self, values: list[tuple[str, History]]) -> list[tuple[str, History]]:
        return self._random.sample(values, len(values))


def expect(case: Case, engine: Engine, users: dict[str, History], draws: Draws) -> None:
    """Ask for all users at once, with narrow beams, and compare each with a plain beam search."""
    requests = [(user, width, width, draws.filter()) for user, width in ((user, draws.width()) for user in users)]
    for (user, width, _, wanted), response in zip(requests, ask(engine, *requests), strict=True):
        legal = case.oracle.legal(wanted)
        if response.status is not Status.OK:
            assert not legal or response.status is Status.UNKNOWN_USER
            continue
        history = users[user]
        context = case.oracle.context([i for i, _ in history], [a for _, a in history], case.window)
        assert_same(
            response.items, case.oracle.beam_search(context, legal, case.normalizer, width), width, case.epsilon
        )


@pytest.mark.parametrize("seed", range(3))
def test_any_interleaving_of_appends_and_requests_equals_plain_search(case: Case, engine: Engine, seed: int) -> None:
    draws = Draws(case, seed)
    users: dict[str, History] = {f"{user}-of-{seed}": [] for user in USERS}
    for _ in range(4):
        for user, history in draws.shuffled([(user, draws.history(6)) for user in users]):
            (append if len(history) % 2 else record)(engine, user, history)
            users[user] = [*users[user], *history]
        expect(case, engine, users, draws)


def test_wide_beams_equal_exhaustive_search(case: Case, engine: Engine) -> None:
    draws = Draws(case, 10)
    for number in range(4):
        user, history, wanted = f"wide-{number}", draws.history(8), draws.filter()
        record(engine, user, history)
        legal = case.oracle.legal(wanted)
        (response,) = ask(engine, (user, 300, 300, wanted))
        if response.status is Status.OK:
            context = case.oracle.context([i for i, _ in history], [a for _, a in history], case.window)
            assert_same(response.items, case.oracle.exhaustive(context, legal, case.normalizer), 300, case.epsilon)


def test_an_answer_does_not_depend_on_company_cache_or_graphs(case: Case, engine: Engine) -> None:
    draws = Draws(case, 20)
    users = {f"company-{user}": draws.history(10) for user in USERS}
    requests = [(user, 5, draws.width(), draws.filter()) for user in users]
    for user, history in users.items():
        append(engine, user, history)
    together = ask(engine, *requests)
    for request, expected in zip(requests, together, strict=True):
        (alone,) = ask(engine, request)
        engine.forget([request[0]])
        (cold,) = ask(engine, request)
        for other in (alone, cold):
            assert (other.status, other.error) == (expected.status, expected.error)
            assert_same(other.items, expected.items, len(expected.items), case.epsilon)
        assert cold.cache in (CacheState.COLD, CacheState.NONE)
    settings = {"staged_attention": False, "early_stop": False, "graphs": False, "streams": False}
    plain = Engine(engine.model, engine.catalog, config=engine.config, switches=Switches(**settings))
    for user, history in users.items():
        record(plain, user, history)
    for other, expected in zip(ask(plain, *requests), together, strict=True):
        assert_same(other.items, expected.items, len(expected.items), case.epsilon)


def test_batches_begun_before_the_last_is_finished_answer_alike(case: Case, engine: Engine) -> None:
    draws = Draws(case, 30)
    users = [f"pipelined-{user}" for user in USERS]
    for user in users:
        append(engine, user, draws.history(8))
    batches = []
    for number in range(12):
        user = users[number % len(users)]
        record(engine, user, draws.history(2))
        batches.append([(RecommendRequest(f"{number}", user, 5, 20), engine.history.view(user))])
    pending = [engine.begin(batch) for batch in batches]
    late = [work.finish()[0] for work in pending]
    for batch, response in zip(batches, late, strict=True):
        assert response.event_count == batch[0][1].event_count
    last = {response.user_id: response for response in late}
    for user, response in last.items():
        engine.forget([user])
        (again,) = ask(engine, (user, 5, 20))
        assert_same(again.items, response.items, len(response.items), case.epsilon)
    engine.check_integrity()


@pytest.mark.parametrize("seed", range(2))
def test_one_stream_and_two_in_turn_equal_plain_search(case: Case, engine: Engine, seed: int) -> None:
    draws = Draws(case, 60 + seed)
    users: dict[str, History] = {f"{user}-of-streams-{seed}": [] for user in USERS}
    for streams in (False, True, False, True):
        engine.use_streams(streams)
        for user, history in draws.shuffled([(user, draws.history(6)) for user in users]):
            append(engine, user, history)
            users[user] = [*users[user], *history]
        begun = [engine.begin([(RecommendRequest("0", user, 5, 20), engine.history.view(user))]) for user in users]
        engine.use_streams(not streams)  # while they are under way
        expect(case, engine, users, draws)
        for pending in begun:
            (response,) = pending.finish()
            (again,) = ask(engine, (response.user_id, 5, 20))
            assert_same(again.items, response.items, len(response.items), case.epsilon)
    engine.check_integrity()


def test_flips_of_availability_reach_captured_graphs(case: Case, engine: Engine) -> None:
    draws = Draws(case, 40)
    append(engine, "flips", draws.history(8))
    (before,) = ask(engine, ("flips", 5, 40))
    gone = [item.item_id for item in before.items[:3]]
    engine.catalog.set_available(gone, False)
    (without,) = ask(engine, ("flips", 5, 40))
    assert not {item.item_id for item in without.items} & set(gone)
    engine.catalog.set_available(gone, True)
    (after,) = ask(engine, ("flips", 5, 40))
    assert_same(after.items, before.items, 5, case.epsilon)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_find_most_of_the_same_items(dtype: str) -> None:
    """Of the best 20 of 300 items under random weights, where many scores are close, at least 15 are the same; scores
    are within 0.1."""
    case = CASES["plain"]
    draws = Draws(case, 50)
    rough, exact = case.engine(8 << 20, device="cuda", dtype=dtype), case.engine(8 << 20, device="cuda")
    for number in range(5):
        user, history = f"user-{number}", draws.history(12)
        for engine in (rough, exact):
            record(engine, user, history)
        (mine,), (theirs,) = (ask(engine, (user, 20, 64)) for engine in (rough, exact))
        assert len({item.item_id for item in mine.items} & {item.item_id for item in theirs.items}) >= 15
        for one, other in zip(mine.items, theirs.items, strict=True):
            assert abs(one.score - other.score) < 0.1


def test_a_cache_in_fp8_finds_most_of_the_same_items() -> None:
    """As above, in bfloat16 with and without it."""
    case = CASES["fp8"]
    draws = Draws(case, 60)
    fp8, plain = (
        one.engine(8 << 20, device="cuda", dtype="bfloat16") for one in (case, replace(case, kv_cache_dtype="auto"))
    )
    assert fp8.cache.pool.bytes_per_page * 2 == plain.cache.pool.bytes_per_page
    same = 0
    for number in range(10):
        user, history = f"user-{number}", draws.history(12)
        for engine in (fp8, plain):
            record(engine, user, history)
        (mine,), (theirs,) = (ask(engine, (user, 20, 64)) for engine in (fp8, plain))
        same += len({item.item_id for item in mine.items} & {item.item_id for item in theirs.items})
        for one, other in zip(mine.items, theirs.items, strict=True):
            assert abs(one.score - other.score) < 0.3
    assert same >= 185  # of 200; 195 on a CPU


def test_logits_equal_transformers() -> None:
    """Invariant 5 for the kernels: prefill by chunks, and one beam's path, against Qwen3 in float32."""
    transformers = pytest.importorskip("transformers")
    from tests.model.reference import reference_forward
    from xgr_stream.model import build_model
    from xgr_stream.testing.models import tiny_checkpoint

    config, tensors, xgr = tiny_checkpoint((8, 8, 8), config=HEADS)
    decoder = build_model(config, tensors, xgr, device="cuda", dtype="float32").decoder
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**{k: v for k, v in config.items() if k != "architectures"})
    )
    theirs.load_state_dict(tensors, strict=False)
    theirs.tie_weights()
    tokens = torch.randint(0, config["vocab_size"], (33,))
    with torch.inference_mode():
        expected = theirs.cuda().float()(tokens[None].cuda()).logits[0]
        torch.testing.assert_close(reference_forward(decoder, tokens.cuda()), expected, atol=1e-4, rtol=1e-4)
