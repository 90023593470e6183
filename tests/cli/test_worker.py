"""The worker command with a model, a catalog and topics that do not belong together: it says so and exits with 1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from xgr_stream.cli.main import main
from xgr_stream.testing import save_tiny_model, tiny_catalog


def _of_other_levels(shop: Path) -> None:
    tiny_catalog((8, 8)).save(shop / "catalog.parquet")


def _of_other_codes(shop: Path) -> None:
    tiny_catalog((8, 8, 16)).save(shop / "catalog.parquet")


def _not_a_catalog(shop: Path) -> None:
    (shop / "catalog.parquet").write_bytes(b"PAR1 and nothing else")


def _of_a_small_vocabulary(shop: Path) -> None:
    settings = json.loads((shop / "model" / "xgr.json").read_text())
    settings["item_tokens"] = {"offset": 1_000_000}
    (shop / "model" / "xgr.json").write_text(json.dumps(settings))


def _without_weights(shop: Path) -> None:
    for path in (shop / "model").glob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_of_other_levels, ("2 levels", "have 3", "build the catalog")),
        (_of_other_codes, ("16 codes at level 2", "for 8", "build the catalog")),
        (_not_a_catalog, ("catalog.parquet",)),
        (_of_a_small_vocabulary, ("vocab",)),
        (_without_weights, ("safetensors",)),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, spoil: Callable[[Path], None], says: tuple[str, ...]) -> None:
    save_tiny_model(tmp_path / "model")
    tiny_catalog().save(tmp_path / "catalog.parquet")
    spoil(tmp_path)
    options = ["--model", str(tmp_path / "model"), "--catalog", str(tmp_path / "catalog.parquet")]
    result = CliRunner().invoke(main, ["worker", "--broker", "127.0.0.1:1", *options])
    assert result.exit_code == 1
    assert result.output.startswith(("Error: checkpoint: ", "Error: catalog: ", "Error: config: "))
    assert all(part in result.output for part in says), result.output
