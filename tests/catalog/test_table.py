"""Tables in, and what is said of tables that are wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from xgr_stream.catalog import Catalog
from xgr_stream.errors import CatalogError
from xgr_stream.types import ItemFilter

ITEMS: dict[str, list[Any]] = {
    "item_id": ["007", "b", "c"],
    "sid": [[1, 2], [0, 3], [1, 2]],
    "tags": [["x", "y"], ["y"], []],
    "popularity": [1.5, 2.0, 0.0],
    "available": [True, False, True],
    "title": ["Bond", "Bee", "Sea"],
}


def allowed(catalog: Catalog, wanted: ItemFilter) -> list[bool]:
    """Per row."""
    flags: list[bool] = catalog.resolve(wanted).allows(np.arange(catalog.num_items, dtype=np.int32)).tolist()
    return flags


def assert_is_items(catalog: Catalog) -> None:
    assert catalog.item_ids == ("b", "007", "c")
    assert catalog.sids.tolist() == [[0, 3], [1, 2], [1, 2]]
    assert catalog.codes == (2, 4)
    assert catalog.available.tolist() == [False, True, True]
    assert allowed(catalog, ItemFilter(allow=("y",))) == [False, True, False]
    assert allowed(catalog, ItemFilter(deny=("x",))) == [False, False, True]
    assert catalog.popular(3, catalog.resolve(ItemFilter())).tolist() == [1, 2]


def test_columns_in_memory() -> None:
    assert_is_items(Catalog.from_table(ITEMS))
    assert_is_items(Catalog.from_table(pa.table(ITEMS)))


def test_parquet(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table(ITEMS), tmp_path / "items.parquet")
    assert_is_items(Catalog.from_table(tmp_path / "items.parquet"))
    assert_is_items(Catalog.load(str(tmp_path / "items.parquet")))


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        "item_id,sid_0,sid_1,tags,popularity,available,title\n"
        "007,1,2,x|y,1.5,true,Bond\nb,0,3,y,2.0,false,Bee\nc,1,2,,0,true,Sea\n"
    )
    assert_is_items(Catalog.from_table(path))


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    rows = [dict(zip(ITEMS, values, strict=True)) for values in zip(*ITEMS.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert_is_items(Catalog.from_table(path))


def test_json_that_looks_like_dates_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "2024-01-01", "sid": [1, 2], "tags": ["2023-12-31"], "since": "2020-02-02"}\n')
    catalog = Catalog.from_table(path)
    assert catalog.item_ids == ("2024-01-01",)
    assert allowed(catalog, ItemFilter(allow=("2023-12-31",))).count(True) == 1


def test_integer_item_ids_become_strings() -> None:
    catalog = Catalog.from_table({"item_id": [7, 12], "sid": [[0], [1]]})
    assert catalog.item_ids == ("7", "12")


def test_only_the_needed_columns_matter() -> None:
    catalog = Catalog.from_table({"item_id": ["a"], "sid_0": [5], "sid_1": [0], "sidecar": ["x"]}, codes=(8, 1))
    assert catalog.codes == (8, 1)
    assert catalog.available.all()
    assert catalog.popular(1, catalog.resolve(ItemFilter())).tolist() == []
    assert not any(allowed(catalog, ItemFilter(allow=("x",))))


GOOD: dict[str, Any] = {"item_id": ["a", "b"], "sid": [[1, 2], [3, 4]]}
EMPTY_LISTS = pa.array([[], []], pa.list_(pa.int32()))
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"item_id": [], "sid": []}, "the table holds no items; expected at least 1"),
    ({"item_id": None}, "the table has no column 'item_id', expected one; its columns: ['sid']"),
    ({"sid": None}, "the table has no column 'sid' nor 'sid_0', 'sid_1', ...; its columns: ['item_id']"),
    ({"sid": None, "sid_0": [1, 2], "sid_2": [1, 2]}, "the table has no column 'sid_1', expected one"),
    ({"sid_0": [1, 2]}, "the table has a column 'sid' and ['sid_0'], expected one or the other"),
    ({"sid": [[1]]}, "columns have lengths {'item_id': 2, 'sid': 1}, expected equal ones"),
    ({"item_id": ["a", 1]}, "column 'item_id' cannot be read, expected values of one type"),
    ({"item_id": [1.5, 2.5]}, "column 'item_id' is double, expected strings or integers"),
    ({"item_id": ["a", None]}, "item_id of item None (row 1) is None, expected a string of 1 to 256 characters"),
    ({"item_id": ["a", ""]}, "item_id of item '' (row 1) is '', expected a string of 1 to 256 characters"),
    ({"item_id": ["a", "x" * 10**6]}, "xxx... (row 1) is 'xxx"),
    ({"item_id": ["a", "a"]}, "item_id 'a' occurs 2 times, expected every item once"),
    ({"sid": ["1 2", "3 4"]}, "column 'sid' is string, expected lists of integers"),
    ({"sid": [[0.5], [1.5]]}, "column 'sid' is list<item: double>, expected lists of integers"),
    ({"sid": [[1, 2], [3]]}, "sid of item 'b' (row 1) is [3], expected 2 codes, as the first item has"),
    ({"sid": [[1, 2], None]}, "sid of item 'b' (row 1) is None, expected a list of codes"),
    ({"sid": [[1, 2], [3, None]]}, "sid of item 'b' (row 1) is [3, None], expected integer codes"),
    ({"sid": EMPTY_LISTS}, "sid of item 'a' (row 0) is [], expected at least 1 code"),
    ({"sid": [[1, 2], [3, -1]]}, "sid of item 'b' (row 1) has code -1 at level 1, expected 0 to 1048575"),
    ({"sid": [[1, 2], [2**40, 4]]}, "has code 1099511627776 at level 0, expected 0 to 1048575"),
    ({"sid": None, "sid_0": [0.5, 1.5]}, "column 'sid_0' is double, expected integers"),
    ({"sid": None, "sid_0": [1, None]}, "sid_0 of item 'b' (row 1) is None, expected an integer code"),
    ({"sid": None, "sid_0": pa.array([1, 2**63], pa.uint64())}, "column 'sid_0' is uint64, expected 64-bit integers"),
    ({"sid": None, "sid_0": [1, 2**63]}, "column 'sid_0' cannot be read, expected values of one type"),
    ({"tags": [3, 4]}, "column 'tags' is int64, expected lists of strings, or strings with '|' between tags"),
    ({"tags": [[3], [4]]}, "column 'tags' is list<item: int64>, expected lists of strings"),
    ({"tags": [[], ["x", None]]}, "tags of item 'b' (row 1) is ['x', None], expected strings"),
    ({"tags": [["x"], ["x", "y" * 257]]}, "expected tags of at most 256 characters"),
    ({"tags": [["x"], [f"tag-{number}" for number in range(1025)]]}, "expected at most 1024 tags"),
    ({"popularity": [1.0, float("nan")]}, "popularity of item 'b' (row 1) is nan, expected a finite number"),
    ({"popularity": [1, None]}, "popularity of item 'b' (row 1) is None, expected a finite number"),
    ({"popularity": ["low", "high"]}, "column 'popularity' is string, expected numbers"),
    ({"available": ["yes", "no"]}, "column 'available' is string, expected booleans"),
    ({"available": [True, None]}, "available of item 'b' (row 1) is None, expected true or false"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_table_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    columns = {name: values for name, values in (GOOD | changes).items() if values is not None}
    with pytest.raises(CatalogError, match=re.escape(message)):
        Catalog.from_table(columns)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ((8, 4), "sid of item 'b' (row 1) has code 4 at level 1, expected 0 to 3"),
        ((8, 8, 8), "codes is (8, 8, 8) (3 levels), but the table's SIDs have 2 levels"),
        ((8, 0), "codes of level 1 is 0, expected an integer from 1 to 1048576"),
        ((8, 8.0), "codes of level 1 is 8.0, expected an integer from 1 to 1048576"),
        (True, "codes of level 0 is True, expected an integer from 1 to 1048576"),
        (8.0, "codes is 8.0, expected an integer or a sequence of them, one for each level"),
        ("88", "codes is '88', expected an integer or a sequence of them, one for each level"),
    ],
)
def test_codes_that_do_not_fit_the_table_are_refused(codes: Any, message: str) -> None:
    with pytest.raises(CatalogError, match=re.escape(message)):
        Catalog.from_table(GOOD, codes=codes)


@pytest.mark.parametrize("codes", [np.int64(8), [8, np.int64(8)], np.array([8, 8])])
def test_codes_may_be_numpys(codes: Any) -> None:
    catalog = Catalog.from_table(GOOD, codes=codes)
    assert catalog.codes == (8, 8)
    assert [type(of) for of in catalog.codes] == [int, int]


@pytest.mark.parametrize("name", ["items.parquet", "items.csv", "items.jsonl"])
def test_a_missing_or_broken_file_is_a_catalog_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        Catalog.load(tmp_path / name)
    (tmp_path / name).write_bytes(b"\x00\xff{broken")
    with pytest.raises(CatalogError):
        Catalog.load(tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CatalogError):
        Catalog.load(tmp_path / name)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=re.escape("must be a file that ends in one of ['.csv', '.jsonl'")):
        Catalog.load(tmp_path / "items.xlsx")


def test_tags_are_those_of_their_items_where_a_list_is_missing() -> None:
    def table(*tags: list[str | None] | None) -> pa.Table:
        lists = pa.array(tags, pa.list_(pa.string(), 1))  # what is missing has a value behind it
        return pa.table({"item_id": ["a", "b", "c"], "sid": [[0], [1], [2]], "tags": lists})

    assert Catalog.from_table(table(None, ["x"], ["y"])).columns.tags.of_rows(np.arange(3)) == [(), ("x",), ("y",)]
    with pytest.raises(CatalogError, match=r"tags of item 'c' \(row 2\)"):
        Catalog.from_table(table(None, ["x"], ["y" * 257]))
    with pytest.raises(CatalogError, match=r"tags of item 'c' \(row 2\) is \[None\], expected strings"):
        Catalog.from_table(table(None, ["x"], [None]))
