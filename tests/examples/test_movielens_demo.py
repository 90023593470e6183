"""The MovieLens demo: its replay without a broker, its figures, and the whole of it as a user runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from examples.movielens import data as movielens
from examples.movielens import demo, report
from examples.movielens.data import MovieLens, UserEvents
from examples.movielens.decoder import Decoder, Shape
from examples.movielens.replay import Answer, Replay, Replayed, timeline
from examples.movielens.timing import ColdAndWarm, Latency, Prober
from xgr_stream import Catalog, Recommendation, RecommendResponse, Status
from xgr_stream.client import EventPosition
from xgr_stream.errors import DeadlineExceeded
from xgr_stream.model import save_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data() -> MovieLens:
    return movielens.load()


class FakeClient:
    """Keeps histories itself; answers with the ten most popular items, slowly, and refuses `silent` users."""

    def __init__(self, data: MovieLens, silent: Sequence[str] = ()) -> None:
        self.histories: dict[str, list[str]] = {}
        self.requests: list[tuple[str, int, EventPosition]] = []
        self._silent = silent
        self._popular = data.item_ids(np.argsort(-data.training_counts)[:10])

    async def send_event(self, user_id: str, item_id: str, *, timestamp_ms: int) -> EventPosition:
        history = self.histories.setdefault(user_id, [])
        history.append(item_id)
        position = EventPosition(0, len(history) - 1)
        await asyncio.sleep(0.001)
        return position

    async def recommend(
        self, user_id: str, k: int, *, exclude: Sequence[str], timeout: float, after: EventPosition
    ) -> RecommendResponse:
        if user_id in self._silent:
            raise DeadlineExceeded("no response came")
        await asyncio.sleep(0.002)
        history = self.histories[user_id]
        assert list(exclude) == history
        self.requests.append((user_id, len(history), after))
        items = tuple(Recommendation(item, -1.0, (0, 0, 0)) for item in self._popular if item not in exclude)
        return RecommendResponse(
            "r", user_id, Status.OK, items[:k], event_count=len(history), stages_ms={"total": float(len(history))}
        )


async def test_a_replay_asks_before_each_held_out_event_and_never_after_it(data: MovieLens) -> None:
    users = data.users[:15]
    client = FakeClient(data)
    events = []
    replayed = await Replay(data, client, 10).run(timeline(users), lambda: events.append(1))  # type: ignore[arg-type]
    assert replayed.num_events == len(events) == sum(len(user.items) for user in users)
    for user in users:
        assert client.histories[user.user_id] == data.item_ids(user.items)
        asked = [(seen, after.offset) for user_id, seen, after in client.requests if user_id == user.user_id]
        total = len(user.items)
        assert asked == [(total - 2, total - 3), (total - 1, total - 2)]
        assert replayed.last[user.user_id].offset == total - 1
    assert sorted((answer.user.user_id, answer.number) for answer in replayed.answers) == sorted(
        (user.user_id, len(user.items) - left) for user in users for left in (2, 1)
    )


async def test_a_request_without_an_answer_is_counted_and_the_replay_goes_on(data: MovieLens) -> None:
    users = data.users[:4]
    client = FakeClient(data, silent=[users[0].user_id])
    replayed = await Replay(data, client, 10).run(timeline(users), lambda: None)  # type: ignore[arg-type]
    failed = [answer for answer in replayed.answers if answer.response is None]
    assert [(answer.user.user_id, answer.error) for answer in failed] == [(users[0].user_id, "no response came")] * 2
    assert client.histories[users[0].user_id] == data.item_ids(users[0].items)


def test_popularity_is_scored_on_the_same_events_by_training_counts(data: MovieLens) -> None:
    user = data.users[0]
    popular = [int(item) for item in np.argsort(-data.training_counts, kind="stable")]
    unseen = [item for item in popular if item not in user.items[:-2]]
    hit = UserEvents(user.user_id, np.append(user.items[:-2], [unseen[9], unseen[0]]), user.times)
    miss = UserEvents(user.user_id, np.append(user.items[:-2], [unseen[10], unseen[0]]), user.times)
    number = len(user.items) - 2
    answers = [Answer(who, number, None, 1.0) for who in (hit, miss)]
    assert report.popularity_quality(data, answers, 10).recall == 0.5
    assert report.model_quality(data, answers, 10).recall == 0.0


def test_latencies_of_the_longest_histories(data: MovieLens) -> None:
    def answer(number: int, total_ms: float) -> Answer:
        response = RecommendResponse("r", "u", Status.OK, stages_ms={"total": total_ms})
        return Answer(data.users[0], number, response, total_ms + 5)

    timed = ColdAndWarm([answer(10, 4.0), answer(30, 9.0), answer(20, 6.0)], [answer(n, 2.0) for n in (10, 30, 20)])
    assert timed.factor == 3.0
    assert timed.longest_third().factor == 4.5
    assert Latency.of(timed.cold).end_to_end_p50 == 11.0


@pytest.mark.parametrize(
    ("places", "failed", "own", "code", "said"),
    [
        ([1, 1, 1], 0, True, 0, ""),
        ([50, 50, 1], 0, True, 1, "the goal was missed: 1.5 times as many hits as popularity has, and it is 1.0"),
        ([50, 50, 1], 0, False, 0, "the goal was missed"),
        ([1, 1, 1], 2, False, 1, "2 requests were not answered"),
    ],
)
def test_its_exit_code_says_whether_it_did_what_it_should(
    data: MovieLens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    places: Sequence[int],
    failed: int,
    own: bool,
    code: int,
    said: str,
) -> None:
    """Of three users' next movies popularity recommends the last one's; `places`: where the model has them."""
    user = data.users[0]
    popular = [int(item) for item in np.argsort(-data.training_counts, kind="stable")]
    unseen = [item for item in popular if item not in user.items[:-2]]
    answers = []
    for target, place in zip((unseen[10], unseen[11], unseen[0]), places, strict=True):
        who = UserEvents(user.user_id, np.append(user.items[:-2], [target, unseen[20]]), user.times)
        items = tuple(Recommendation(data.movies[target].item_id, -1.0, (0, 0, 0)) for _ in range(place == 1))
        response = RecommendResponse("r", user.user_id, Status.OK, items, stages_ms={"total": 1.0})
        answers.append(Answer(who, len(user.items) - 2, response, 2.0))
    timed = ColdAndWarm(answers[:1], answers[:1])
    outcome = demo.Outcome(Replayed(answers, {}, 100, 1.0), 1, timed, 1.0, failed)

    async def measured(*_: object) -> demo.Outcome:
        return outcome

    (tmp_path / "xgr.json").write_text("{}")
    monkeypatch.setattr(demo, "_run", measured)
    monkeypatch.setattr(demo, "_trained", lambda _: tmp_path)
    monkeypatch.setattr(demo, "EmbeddedBroker", contextlib.nullcontext)
    monkeypatch.setattr(report, "show_users", lambda *_: None)
    result = CliRunner().invoke(demo.main, ["--users", "2", *(() if own else ("--model", str(tmp_path)))])
    assert result.exit_code == code, result.output
    assert said in result.stderr if said else not result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["requests_failed"] == failed


async def test_a_timed_request_without_an_answer_is_told_of(data: MovieLens) -> None:
    users = data.users[:2]
    client = FakeClient(data, silent=[user.user_id for user in users])
    replayed = Replayed([], {user.user_id: EventPosition(0, 0) for user in users}, 0, 1.0)
    prober = Prober(data, client, replayed, 10)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no user was answered cold and then warm: no response came"):
        await prober.cold_and_warm(users, lambda: None)
    assert [answer.error for answer in prober.answers] == ["no response came"] * 4


@pytest.mark.embedded
@pytest.mark.integration
def test_the_demo_runs_to_its_end(data: MovieLens, tmp_path: Path) -> None:
    shape = Shape(hidden=32, layers=1, heads=2, head_dim=16, intermediate=64)
    xgr = {"format": 1, "codes": [64] * 3, "item_tokens": {"offset": 0}, "window": {"max_events": 200}}
    save_checkpoint(tmp_path, shape.config(), Decoder(shape, 0.0).hugging_face_state(), xgr)
    items = {
        "item_id": [movie.item_id for movie in data.movies],
        "sid": [(n % 64, n // 64, n % 5) for n in range(data.num_items)],
    }
    Catalog.from_table(items, codes=(64, 64, 64)).save(tmp_path / "catalog.parquet")
    run = subprocess.run(
        [sys.executable, "-m", "examples.movielens.demo", "--model", tmp_path, "--users", "6"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["requests_failed"] == 0
    assert figures["scored_events"] == 12
    assert figures["users_warm"] == 6
    assert figures["events"] > 100
    assert 0 < figures["warm_p50_ms"] <= figures["warm_p99_ms"]
    assert "watched next:" in run.stdout
