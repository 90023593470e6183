"""Time and peak memory of a catalog at scale: `python tests/catalog/build_at_scale.py [parquet|csv|jsonl] [items]`.

Writes a table of random items (1,500,000 × 3 levels × 8,192 codes by default, two tags of 200 each), then builds a
catalog from it in a fresh process and prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

if TYPE_CHECKING:
    from xgr_stream.catalog import Catalog
    from xgr_stream.engine.legality import LegalityTables

CODES = (8192, 8192, 8192)


def write_table(path: Path, num_items: int) -> None:
    random = np.random.default_rng(0)
    tag_names = np.array([f"category-{tag}" for tag in range(200)])
    tags = np.sort(random.integers(0, 200, (num_items, 2)), axis=1)
    columns = {f"sid_{level}": random.integers(0, codes, num_items) for level, codes in enumerate(CODES)}
    table = pa.table(
        {
            "item_id": [f"item-{item}" for item in random.permutation(num_items)],
            **columns,
            "tags": ["|".join(pair) for pair in tag_names[tags]],
            "popularity": random.random(num_items),
            "available": random.random(num_items) < 0.95,
        }
    )
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        with path.open("w") as file:
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                file.write(json.dumps(dict(zip(table.column_names, row, strict=True))) + "\n")


def measure(path: Path) -> dict[str, float | int | str]:
    import torch

    from xgr_stream.catalog import Catalog
    from xgr_stream.engine.legality import LegalityTables
    from xgr_stream.types import ItemFilter

    torch.set_num_threads(1)

    started = time.perf_counter()
    catalog = Catalog.from_table(path, codes=CODES)
    build_s = time.perf_counter() - started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    excluded = catalog.item_ids[:: catalog.num_items // 1000][:1000]
    tags = ItemFilter(allow=("category-1", "category-2", "category-3"), deny=("category-7",))
    tables = LegalityTables(catalog, torch.device("cpu"))
    exclude = ItemFilter(exclude=excluded)
    leaves = np.arange(0, catalog.trie.num_leaves, catalog.trie.num_leaves // 128)
    return {
        "format": path.suffix[1:],
        "items": catalog.num_items,
        "leaves": catalog.trie.num_leaves,
        "build_s": round(build_s, 2),
        "build_peak_rss_mb": round(peak_bytes / 1e6),
        "tags_first_ms": milliseconds(lambda: tables.bring([catalog.resolve(tags)]), runs=1),
        "tags_ms": milliseconds(lambda: tables.bring([catalog.resolve(tags)])),
        "exclude_1000_ms": milliseconds(lambda: tables.bring([catalog.resolve(exclude)])),
        "items_at_128_leaves_ms": milliseconds(lambda: catalog.items_at(leaves)),
        "popular_10_ms": milliseconds(lambda: catalog.popular(10, catalog.resolve(tags))),
        "flip_1_item_ms": milliseconds(lambda: flip(catalog, excluded[:1], tables), runs=50) / 2,
    }


def flip(catalog: Catalog, item_ids: tuple[str, ...], tables: LegalityTables) -> None:
    for available in (False, True):
        catalog.set_available(item_ids, available)
        tables.bring([])


def milliseconds(call: Callable[[], object], runs: int = 20) -> float:
    started = time.perf_counter()
    for _ in range(runs):
        call()
    return round((time.perf_counter() - started) / runs * 1000, 3)


def main(suffix: str = "parquet", num_items: str = "1500000") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"items.{suffix}"
        write_table(path, int(num_items))
        print("table written, building", file=sys.stderr)
        subprocess.run([sys.executable, __file__, "--measure", str(path)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main(*sys.argv[1:])
