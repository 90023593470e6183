"""`xgr-stream catalog` on files alone; tests/integration has it with a topic."""

from __future__ import annotations

import errno
import importlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner, Result

from xgr_stream.catalog import Catalog
from xgr_stream.cli.catalogs.apply import rows_of
from xgr_stream.cli.catalogs.source import Log, Source, load
from xgr_stream.cli.main import main
from xgr_stream.errors import CatalogError
from xgr_stream.types import CatalogUpdate

module = importlib.import_module("xgr_stream.cli.catalogs.apply")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["catalog", *map(str, arguments)])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "items.csv"
    path.write_text("item_id,sid_0,sid_1,tags,available\na,0,1,x|y,true\nb,0,1,x,true\nc,2,3,,false\nd,2,0,,true\n")
    return path


def test_build_and_inspect(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "catalog.parquet"
    built = run("build", table, "--out", out, "--codes", 4, "--codes", 8)
    assert built.output == f"4 items, version {Catalog.load(out).version}, in {out}\n"
    figures = json.loads(run("inspect", out, "--json").output)
    assert (figures["items"], figures["available"], figures["semantic_ids"]) == (4, 3, 3)
    assert (figures["shared_semantic_ids"], figures["items_that_share_one"], figures["most_items_of_one"]) == (1, 2, 2)
    assert [level["codes_without_items"] for level in figures["levels"]] == [2, 5]
    assert [level["dead_nodes"] for level in figures["levels"]] == [0, 1]
    assert "level 1: codes 8, codes without items 5, nodes 3, dead nodes 1" in run("inspect", out).output


def test_build_of_embeddings(table: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.eye(4, dtype=np.float32))
    out = tmp_path / "made.parquet"
    options = ["--out", out, "--embeddings", tmp_path / "vectors.npy", "--levels", 2, "--codes", 4, "--unique"]
    assert run("build", table, *options).exit_code == 0
    made = Catalog.load(out)
    assert (made.codes, made.trie.num_leaves) == ((4, 4), 4)
    assert made.columns.tags.of_rows(made.rows(["a"])) == [("x", "y")]
    assert not made.available[made.row("c")]


def test_a_directory_that_is_not_there_is_named(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "none" / "catalog.parquet"
    found = run("diff", table, table, "--out", out)
    assert (found.exit_code, f"Error: {out} cannot be written: " in found.output) == (1, True), found.output
    monkeypatch.setattr(Catalog, "from_table", None)  # said before the work, and not behind it
    built = run("build", table, "--codes", 4, "--out", out)
    assert (built.exit_code, f"must be in a directory that there is, not '{out}'" in built.output) == (2, True)


def test_a_catalog_that_can_t_be_written_is_named(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Catalog, "save", full)
    result = run("build", table, "--codes", 4, "--out", tmp_path / "made.parquet")
    assert (result.exit_code, result.output) == (
        1,
        f"Error: {tmp_path / 'made.parquet'} cannot be written: [Errno 28] no space left\n",
    )


def test_diff_names_each_kind_of_change(table: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("item_id,sid_0,sid_1,tags,available\na,1,1,x|y,true\nb,0,1,z,true\nc,2,3,,true\ne,3,3,,true\n")
    out = tmp_path / "changes.parquet"
    result = run("diff", table, other, "--out", out)
    assert result.output.splitlines()[-1] == "new 1, gone 1, moved 1, retagged 1, back 1, away 0"
    lines = [json.loads(line) for line in run("diff", table, other, "--json").output.splitlines()]
    assert {line["item_id"]: line["kind"] for line in lines} == {
        "a": "moved",
        "b": "retagged",
        "c": "back",
        "d": "gone",
        "e": "new",
    }
    assert parquet.read_table(out).column("gone").to_pylist() == [line["kind"] == "gone" for line in lines]
    assert run("diff", table, table).output == "new 0, gone 0, moved 0, retagged 0, back 0, away 0\n"


def test_one_number_of_codes_is_every_level_s(table: Path, tmp_path: Path) -> None:
    assert run("build", table, "--codes", 16, "--out", tmp_path / "catalog.parquet").exit_code == 0
    assert Catalog.load(tmp_path / "catalog.parquet").codes == (16, 16)


@pytest.mark.parametrize("option", ["--codes", "--embeddings"])
@pytest.mark.parametrize("at", ["1", "end"])
def test_a_version_is_built_with_the_codes_of_its_file(option: str, at: str, table: Path, tmp_path: Path) -> None:
    value = 16 if option == "--codes" else table
    result = run("build", f"{table}+{at}", option, value, "--out", tmp_path / "catalog.parquet")
    assert result.exit_code == 2
    assert f"{option} must not be given with FILE+OFFSET and FILE+end" in result.output


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[CatalogUpdate]:
    """What `apply` writes to a topic that was empty."""
    updates: list[CatalogUpdate] = []
    monkeypatch.setattr(module, "read_log", lambda *_: Log([], [], [], 0))
    monkeypatch.setattr(module, "write_updates", lambda _connection, _topic, found: updates.extend(found))
    return updates


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        (
            [{"item_id": "a", "available": False}, {"item_id": "a", "available": True}],
            "row 1 of {table}, item 'a': item_id must be of one row alone, and row 0 has it too",
        ),
        (
            [{"item_id": "a", "sid": [0, 9]}],
            "row 0 of {table}, item 'a': sid must hold a code from 0 to 3 at level 1, not 9",
        ),
        ([{"item_id": "a", "sid": [0]}], "sid must hold 2 codes"),
        ([{"item_id": "a", "gone": "no"}], "gone must be true or false, not 'no'"),
        ([{"item_id": "a", "tags": 5}], "row 0 of {table}, item 'a': tags must be a collection of strings, not 5"),
        (
            [{"item_id": "a", "tags": {"x": 1}}],
            "row 0 of {table}, item 'a': tags must be a collection of strings, not {{'x'",
        ),
        ([{"item_id": "a", "sid_0": None, "sid_1": 0}], "item 'a': sid must be None or a sequence of codes"),
    ],
)
def test_a_row_that_can_t_be_applied_is_refused_and_nothing_written(
    rows: list[dict[str, object]], wrong: str, table: Path, tmp_path: Path, written: list[CatalogUpdate]
) -> None:
    updates = tmp_path / "updates.jsonl"
    good = {"item_id": "b", "available": False}
    updates.write_text("\n".join(map(json.dumps, [*rows, good])) + "\n")
    result = run("apply", updates, "--catalog", table)
    assert result.exit_code == 1
    assert wrong.format(table=updates) in result.output
    assert not written
    updates.write_text(json.dumps(good) + "\n")
    assert run("apply", updates, "--catalog", table).exit_code == 0
    assert [(update.item_id, update.sid, update.available) for update in written] == [("b", (0, 1), False)]


@pytest.mark.parametrize("row", [{"item_id": ["a"]}, {"item_id": {"x": 1}, "sid": [0, 1]}])
def test_an_id_that_is_a_list_or_a_map_is_named(
    row: dict[str, object], table: Path, tmp_path: Path, written: list[CatalogUpdate]
) -> None:
    updates = tmp_path / "updates.jsonl"
    updates.write_text(json.dumps(row) + "\n")
    result = run("apply", updates, "--catalog", table)
    assert result.exit_code == 1
    assert f"row 0 of {updates}, item {row['item_id']}: item_id must be a string of 1 to 256 char" in result.output
    assert not written


@pytest.mark.parametrize("command", ["apply", "rollback"])
def test_the_file_that_workers_were_started_with_has_no_offset(command: str, table: Path) -> None:
    result = run(command, table, "--catalog", f"{table}+1")
    assert result.exit_code == 2
    assert "must be a file alone" in result.output


def test_an_update_that_does_not_fit_counts_as_it_does_in_workers(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    updates = [CatalogUpdate("a", (0, 9)), CatalogUpdate("b", (0, 2)), CatalogUpdate("d", (2, 0, 0))]
    served = load(Source(table, None, to_end=True), Log(updates, [0, 1, 2], [0, 0, 0], 3))
    available = served.available[served.rows("abcd")].tolist()
    found = {item_id: (served.sid(item_id), there) for item_id, there in zip("abcd", available, strict=True)}
    assert found == {"a": ((0, 1), False), "b": ((0, 2), True), "c": ((2, 3), False), "d": ((2, 0), False)}
    assert served.codes == (3, 4)
    assert capsys.readouterr().err == (
        f"2 updates do not fit the codes of {table} and count as tombstones, "
        "the last of 'd': sid must hold 2 codes, one per level, not (2, 0, 0)\n"
    )


def test_only_updates_that_still_stand_are_said_not_to_fit(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That `b` did not fit, twice, is of no interest once it was written anew, nor what comes behind the version."""
    misfit, fit = CatalogUpdate("b", (0, 9)), CatalogUpdate("b", (1, 1))
    updates = [misfit, CatalogUpdate("a", (0, 8)), misfit, fit, CatalogUpdate("c", None), misfit]
    log = Log(updates, list(range(6)), [0] * 6, 6)
    said = {}
    for offset in (1, 2, 3, 4, 5, 6):
        served = load(Source(table, offset), log)
        said[offset] = capsys.readouterr().err.removesuffix("\n").replace(f" of {table} and count as tombstones", "")
        assert served.sid("b") == ((1, 1) if offset in (4, 5) else (0, 1))
    level_1 = "sid must hold a code from 0 to 3 at level 1, not"
    assert said == {
        1: f"1 updates do not fit the codes, the last of 'b': {level_1} 9",
        2: f"2 updates do not fit the codes, the last of 'a': {level_1} 8",
        3: f"2 updates do not fit the codes, the last of 'b': {level_1} 9",
        4: f"1 updates do not fit the codes, the last of 'a': {level_1} 8",
        5: f"1 updates do not fit the codes, the last of 'a': {level_1} 8",
        6: f"2 updates do not fit the codes, the last of 'b': {level_1} 9",
    }
    assert load(Source(table, 4), Log([misfit, fit], [0, 1], [0, 0], 4)).sid("b") == (1, 1)
    assert capsys.readouterr().err == ""


def test_what_is_no_source_is_refused_by_name(tmp_path: Path) -> None:
    result = run("inspect", f"{tmp_path}/none.parquet+7")
    assert result.exit_code == 2
    assert "must be a file, FILE+OFFSET or FILE+end, and there is no file" in result.output


def test_a_table_of_updates_is_read_as_a_catalog_is(tmp_path: Path) -> None:
    path = tmp_path / "updates.csv"
    path.write_text("item_id,sid_0,sid_1,tags,available,gone\n007,0,1,x|y,false,false\n8,,,,,true\n")
    first, second = rows_of(path)
    assert (first["item_id"], first["sid"], first["tags"], first["available"]) == ("007", [0, 1], ["x", "y"], False)
    assert (second["item_id"], second.get("sid"), second["gone"]) == ("8", None, True)
    path.write_text("item_id,available,gone\na,1,0\nb,0,1\nc,,\n")
    assert [(row["available"], row["gone"]) for row in rows_of(path)] == [(True, False), (False, True), (None, None)]
    path.write_text("item_id,gone\na,no\n")
    with pytest.raises(CatalogError, match="error to bool: invalid value 'no'"):
        rows_of(path)
    parquet.write_table(pa.table({"item_id": ["a"], "gone": [True]}), tmp_path / "gone.parquet")
    assert rows_of(tmp_path / "gone.parquet") == [{"item_id": "a", "gone": True}]
    (tmp_path / "broken.parquet").write_text("item_id")
    with pytest.raises(CatalogError, match=r"broken.parquet' cannot be read"):
        rows_of(tmp_path / "broken.parquet")


def test_what_is_gone_already_does_not_go_again(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base.parquet"
    assert run("build", table, "--codes", 4, "--out", base).exit_code == 0
    log = Log([CatalogUpdate("a", None), CatalogUpdate("b", (3, 3))], [0, 1], [0, 0], 2)
    written: list[CatalogUpdate] = []
    for name in ("apply", "rollback"):
        command = importlib.import_module(f"xgr_stream.cli.catalogs.{name}")
        monkeypatch.setattr(command, "read_log", lambda *_: log)
        monkeypatch.setattr(command, "write_updates", lambda _connection, _topic, found: written.extend(found))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"item_id": item_id, "gone": True}) + "\n" for item_id in ("a", "b", "c", "x")))
    assert run("apply", rows, "--catalog", base).output == "1 updates written to catalog-updates\n"
    other = tmp_path / "other.csv"
    other.write_text("item_id,sid_0,sid_1,available\nd,2,0,true\n")
    rolled_back = run("rollback", other, "--catalog", base)
    assert rolled_back.output.splitlines()[-1] == "1 updates written to catalog-updates"
    assert [(update.item_id, update.sid) for update in written] == [("b", None)] * 2


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "must be a .npy file of numbers: "),
        (np.eye(3), "embeddings have 3 rows, expected one for each of the 4 items"),
        (b"PK\x03\x04garbage", "must be a .npy file of numbers: "),
        (np.eye(4) * 1j, "embeddings are complex128, expected real numbers"),
        (np.zeros((4, 2), "datetime64[s]"), "embeddings are datetime64[s], expected real numbers"),
        ({"a": np.eye(4)}, "must be a .npy file of one array, not of several"),
    ],
)
def test_embeddings_that_can_t_be_read_are_named(content: object, wrong: str, table: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    with path.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        elif isinstance(content, dict):
            np.savez(file, **content)
        else:
            np.save(file, content)
    result = run("build", table, "--embeddings", path, "--codes", 2, "--levels", 2, "--out", tmp_path / "out.parquet")
    assert (result.exit_code, wrong in result.output) == (1, True), result.output


def test_an_id_that_is_true_is_no_id(table: Path, tmp_path: Path, written: list[CatalogUpdate]) -> None:
    updates = tmp_path / "updates.jsonl"
    updates.write_text('{"item_id": true, "sid": [0, 1]}\n')
    result = run("apply", updates, "--catalog", table)
    assert (result.exit_code, written) == (1, [])
    assert "item True: item_id must be a string" in result.output
