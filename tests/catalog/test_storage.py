"""One file: written whole, and refused when it is not what was written."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from xgr_stream.catalog import Catalog, LiveCatalog
from xgr_stream.catalog.storage import FORMAT
from xgr_stream.errors import CatalogError
from xgr_stream.types import CatalogUpdate


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.from_table(
        {
            "item_id": [f"item-{item}" for item in range(200)],
            "sid": [[item % 7, item % 5, item % 3] for item in range(200)],
            "tags": [["even"] if item % 2 == 0 else [] for item in range(200)],
            "popularity": list(range(200)),
        },
        codes=(8, 8, 8),
    )


def test_the_codes_and_the_availability_are_kept(catalog: Catalog, tmp_path: Path) -> None:
    catalog.set_available(["item-3", "item-4"], False)
    catalog.save(tmp_path / "catalog.parquet")
    loaded = Catalog.load(tmp_path / "catalog.parquet")
    assert loaded.codes == (8, 8, 8)
    assert loaded.version == catalog.version
    assert loaded.num_items - loaded.live_counts()[0][0] == 2


def test_saving_leaves_no_other_file_and_replaces_the_old_one(catalog: Catalog, tmp_path: Path) -> None:
    for available in (True, False):
        catalog.set_available(["item-3"], available)
        catalog.save(tmp_path / "catalog.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.parquet"]
    assert Catalog.load(tmp_path / "catalog.parquet").version == catalog.version


def test_the_file_is_a_plain_table_too(catalog: Catalog, tmp_path: Path) -> None:
    catalog.save(tmp_path / "catalog.parquet")
    table = pa.parquet.read_table(tmp_path / "catalog.parquet")
    assert Catalog.from_table(table, codes=(8, 8, 8)).version == catalog.version


def test_another_ending_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="expected a file name that ends in"):
        catalog.save(tmp_path / "catalog.npz")


def test_a_truncated_file_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "catalog.parquet"
    catalog.save(path)
    content = path.read_bytes()
    for length in {*range(0, len(content), 97), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(CatalogError):
            Catalog.load(path)


def test_a_damaged_byte_is_refused_or_harmless(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "catalog.parquet"
    catalog.save(path)
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 11):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            assert Catalog.load(path).version == catalog.version
        except CatalogError:
            refused += 1
    assert refused > len(content) / 11 / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "expected its format, codes and version"),
        ({"codes": None}, "expected its format, codes and version"),
        ({"version": None}, "expected its format, codes and version"),
        ({"codes": "not json"}, "expected its format, codes and version"),
        ({"codes": "8"}, "expected its format, codes and version"),
        ({"format": "99"}, f"catalog format is '99', expected '{FORMAT}'"),
        ({"codes": "[8, 8]"}, "codes is (8, 8) (2 levels)"),
        ({"codes": "[8, 8, 9]"}, "the file was damaged or edited"),
        ({"version": "0.0"}, "expected 0.0 by its header"),
    ],
)
def test_a_wrong_header_is_refused(
    catalog: Catalog, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    path = tmp_path / "catalog.parquet"
    catalog.save(path)
    table = pa.parquet.read_table(path)
    header = table.schema.metadata | {f"xgr_catalog_{name}".encode(): value for name, value in changes.items()}
    kept = {name: value for name, value in header.items() if value is not None}
    pa.parquet.write_table(table.replace_schema_metadata(kept), path)
    with pytest.raises(CatalogError, match=re.escape(message)):
        Catalog.load(path)


def test_a_catalog_that_follows_updates_is_saved_with_what_waits_beside_it(tmp_path: Path) -> None:
    """Also an item of a code that the table has none of, and while names of the next catalog are there already."""
    path = tmp_path / "catalog.parquet"
    live = LiveCatalog(Catalog.from_table({"item_id": ["a"], "sid": [[0, 0]], "tags": [["red"]]}))

    def saved() -> dict[str, tuple[int, ...] | None]:
        live.catalog.save(path)
        loaded = Catalog.load(path)
        return {item_id: loaded.sid(item_id) for item_id in loaded.item_ids}

    live.apply([CatalogUpdate("b", (3, 0))], 1)
    live.join()
    assert saved() == {"a": (0, 0), "b": (3, 0)}
    for position, item_id in enumerate("cd", start=2):
        merge = live.begin()
        assert merge is not None
        merge.run()
        live.finish(merge)
        live.apply([CatalogUpdate(item_id, (0, position))], position)
    merge = live.begin()
    assert merge is not None
    merge.run()
    assert saved() == {"a": (0, 0), "b": (3, 0), "c": (0, 2)}
    live.join()
    assert saved() == {"a": (0, 0), "b": (3, 0), "c": (0, 2), "d": (0, 3)}
