"""`xgr-stream catalog` on files alone; tests/integration has it with a topic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner, Result

from xgr_stream.catalog import Catalog
from xgr_stream.cli.catalogs.apply import rows_of
from xgr_stream.cli.main import main
from xgr_stream.errors import CatalogError


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
    parquet.write_table(pa.table({"item_id": ["a"], "gone": [True]}), tmp_path / "gone.parquet")
    assert rows_of(tmp_path / "gone.parquet") == [{"item_id": "a", "gone": True}]
    (tmp_path / "broken.parquet").write_text("item_id")
    with pytest.raises(CatalogError, match=r"broken.parquet' cannot be read"):
        rows_of(tmp_path / "broken.parquet")
