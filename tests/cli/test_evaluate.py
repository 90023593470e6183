"""`xgr-stream evaluate` and the figures behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from xgr_stream.cli.main import main
from xgr_stream.engine import Engine
from xgr_stream.errors import DeviceLost, InvalidInput
from xgr_stream.evaluation import Quality, UserSequence, evaluate, rank_of, read_sequences, recommend, whole_histories
from xgr_stream.testing import save_tiny_model, tiny_catalog, tiny_model
from xgr_stream.types import RecommendResponse

HISTORIES = [("ann", [3, 5, 8]), ("bob", [1, 1, 20, 7]), ("cid", [11, 12])]


@pytest.fixture
def engine() -> Engine:
    return Engine.load(tiny_model(), tiny_catalog())


def sequences() -> list[UserSequence]:
    return [UserSequence(user, tuple(f"item-{item}" for item in items)) for user, items in HISTORIES]


def test_quality_of_known_ranks() -> None:
    quality = Quality.of_ranks([0, 2, None, 10], k=10)
    assert quality.recall == pytest.approx(0.5)
    assert quality.ndcg == pytest.approx((1 + 0.5) / 4)
    assert quality.recall_error == pytest.approx(0.25)
    assert rank_of(["a", "b"], "b") == 1
    assert rank_of(["a", "b"], "c") is None
    with pytest.raises(InvalidInput, match="at least 1 sequence"):
        Quality.of_ranks([], k=10)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_ranks_are_those_of_the_facade(engine: Engine, exclude_seen: bool) -> None:
    done: list[int] = []
    ranks = evaluate(engine, sequences(), k=20, exclude_seen=exclude_seen, batch_users=2, on_batch=done.append)
    assert done == [2, 1]
    for sequence, rank in zip(sequences(), ranks, strict=True):
        engine.append(sequence.user_id, sequence.history)
        exclude = sequence.history if exclude_seen else ()
        items = [item.item_id for item in engine.recommend(sequence.user_id, k=20, exclude=exclude)]
        assert rank == rank_of(items, sequence.target)


def test_it_leaves_no_user_behind(engine: Engine) -> None:
    evaluate(engine, sequences(), k=5)
    assert engine.stats().users_warm == 0
    assert engine.history.num_users == 0
    engine.check_integrity()


def test_it_leaves_users_alone_whatever_they_are_called(engine: Engine) -> None:
    expected = evaluate(engine, sequences(), k=20)
    engine.append("evaluate-0", ["item-5", "item-6"])
    assert evaluate(engine, sequences(), k=20) == expected
    view = engine.history.view("evaluate-0")
    assert (view is not None and view.event_count, engine.is_resident("evaluate-0")) == (2, True)
    assert engine.history.num_users == 1


@pytest.mark.parametrize("users", [0, -1, 2.5, True, "2", None])
def test_a_batch_is_of_at_least_one_user(engine: Engine, users: Any) -> None:
    with pytest.raises(InvalidInput, match=f"batch_users must be an integer of at least 1, not {users!r}"):
        evaluate(engine, sequences(), batch_users=users)


@pytest.mark.parametrize("fails_at", ["an event", "the answer", "a response"])
def test_an_evaluation_that_fails_leaves_no_user_behind(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """Else the next one's users would have done what its had."""
    expected = evaluate(engine, sequences(), k=20)
    answer = engine.answer

    def failing(pairs: list[Any]) -> list[RecommendResponse]:
        responses = answer(pairs)
        if fails_at == "the answer":
            raise DeviceLost("the card is gone")
        last = pairs[-1][0]
        return [*responses[:-1], RecommendResponse.failure(last.request_id, last.user_id, DeviceLost("no card"))]

    faulty = sequences()
    if fails_at == "an event":
        faulty.append(UserSequence("dan", ("", "item-1")))
    else:
        monkeypatch.setattr(engine, "answer", failing)
    with pytest.raises((DeviceLost, InvalidInput)):
        evaluate(engine, faulty, k=20)
    assert (engine.stats().users_warm, engine.history.num_users) == (0, 0)
    engine.check_integrity()
    monkeypatch.undo()
    assert evaluate(engine, sequences(), k=20) == expected


def test_every_target_is_found_when_all_items_are_recommended(engine: Engine) -> None:
    ranks = evaluate(engine, sequences(), k=60, beam_width=512, exclude_seen=False)
    assert None not in ranks


def test_actions_are_read_by_the_model() -> None:
    engine = Engine.load(tiny_model(xgr={"event": {"actions": {"buy": [5]}}}), tiny_catalog())
    items, actions = ("item-3", "item-5", "item-8"), ("buy", None, None)
    assert evaluate(engine, [UserSequence("ann", items, actions)], k=60, beam_width=512) == evaluate(
        engine, [UserSequence("ann", items, ("buy", "unheard-of", "buy"))], k=60, beam_width=512
    )
    engine.append("ann", items[:2], actions[:2])
    expected = [item.item_id for item in engine.recommend("ann", k=60, beam_width=512)]
    for target in expected[:20]:
        sequence = UserSequence("ann", (*items[:2], target), actions)
        (rank,) = evaluate(engine, [sequence], k=60, beam_width=512, exclude_seen=False)
        assert rank == expected.index(target)
    with pytest.raises(InvalidInput, match=r"actions of user 'ann' must be one per item \(3\), not 1"):
        UserSequence("ann", items, ("buy",))


def test_whoever_has_seen_everything_is_a_miss(engine: Engine) -> None:
    everything = UserSequence("ann", (*engine.catalog.item_ids, "item-1"))
    assert evaluate(engine, [everything, *sequences()])[0] is None


@pytest.mark.parametrize("whole", [True, False])
def test_all_that_a_long_history_holds_is_excluded(whole: bool) -> None:
    """Of the kept part and of what is no longer kept; by name there may be 10,000 items, and 12,100 are seen."""
    engine = Engine.load(tiny_model(), tiny_catalog(), history=whole_histories() if whole else None)
    others = [f"other-{n}" for n in range(12_100 if whole else 4_000)]
    items = ("item-1", *others, "item-2", "item-3", "item-4")
    everything = set(recommend(engine, [UserSequence("ann", items)], k=60, beam_width=512, exclude_seen=False)[0])
    (rest,) = recommend(engine, [UserSequence("ann", items)], k=60, beam_width=512)
    assert everything - set(rest) == {"item-1", "item-2", "item-3"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"user_id": "2024-01-01", "items": ["2024-01-01", "b"], "actions": ["buy", null]}'),
        ("a.csv", "user_id,items,actions\n2024-01-01,2024-01-01|b,buy|"),
    ],
)
def test_actions_and_dates_are_read_as_written(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read_sequences(path) == [UserSequence("2024-01-01", ("2024-01-01", "b"), ("buy", None))]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_each_format_reads_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sequences.{suffix}"
    write(path)
    assert read_sequences(path) == sequences()


def write(path: Path) -> None:
    rows = [{"user_id": sequence.user_id, "items": list(sequence.items)} for sequence in sequences()]
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = ["user_id,items", *(f"{row['user_id']},{'|'.join(row['items'])}" for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "must be a file that ends in one of"),
        ("a.jsonl", '{"user": "ann"}', "must have the columns user_id and items"),
        ("a.csv", "user_id,items,items\nann,a|b,a|b", "must have one column items, not 2"),
        ("a.csv", "user_id,items,actions,actions\nann,a|b,|,|", "must have one column actions, not 2"),
        ("a.jsonl", '{"user_id": "ann", "items": ["a", "b"], "items": ["c"]}', "items.* was specified twice"),
        ("a.jsonl", "{", "cannot be read as a .jsonl file"),
        ("a.jsonl", '{"user_id": "ann", "items": ["item-1"]}', "must hold a history and a target"),
        ("a.jsonl", '{"user_id": "ann", "items": ["item-1", null]}', "row 1 must have"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read_sequences(path)


def test_a_column_twice_is_named_in_parquet(tmp_path: Path) -> None:
    items = pa.array([["item-1", "item-2"]])
    table = pa.table([pa.array(["ann"]), items, items], names=["user_id", "items", "items"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match="must have one column items, not 2"):
        read_sequences(tmp_path / "a.parquet")


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    write(tmp_path / "sequences.jsonl")
    seen = [f"other-{n}" for n in range(12_100)]  # more than a request can exclude by name
    with (tmp_path / "sequences.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"user_id": "dan", "items": [*seen, "item-1", "item-2"]}))
    paths = {"model": "model", "catalog": "catalog.parquet", "sequences": "sequences.jsonl"}
    arguments = [part for option, name in paths.items() for part in (f"--{option}", str(tmp_path / name))]
    result = CliRunner().invoke(main, ["evaluate", *arguments, "--k", "20", "--normalizer", "legal"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    engine = Engine.load(tiny_model(), tiny_catalog())
    assert figures["users"] == 4
    assert figures["normalizer"] == "legal"
    assert figures["model_version"].startswith(engine.model.version)
    assert figures["catalog_version"] == engine.catalog.version
    assert f"Recall@20   {figures['recall']:.4f}" in result.stdout
