"""The README's program that needs no broker, as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.readme import program
from xgr_stream.testing import save_tiny_model, tiny_catalog


def test_the_engine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(tmp_path / "models" / "shop")
    tiny_catalog().save(tmp_path / "models" / "shop" / "catalog.parquet")
    monkeypatch.chdir(tmp_path)
    exec(compile(program("Engine.load"), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.startswith("item-") for line in lines)
