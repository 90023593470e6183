"""`xgr-stream history`, as far as it needs no broker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner

from xgr_stream.cli import histories
from xgr_stream.cli.main import main
from xgr_stream.config import TopicNames
from xgr_stream.errors import TopologyError


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    path.write_text("user_id,item_id")
    result = CliRunner().invoke(main, ["history", "import", str(path)])
    assert result.exit_code == 1
    assert f"{path} cannot be read as a Parquet file" in result.output


def test_a_file_that_is_damaged_inside_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def partitions(*_: object) -> list[int]:
        return [0]

    monkeypatch.setattr(histories, "_partitions", partitions)
    path = tmp_path / "events.parquet"
    names = [f"{number:032}" for number in range(100)]
    parquet.write_table(pa.table({"user_id": names, "item_id": names}), path)
    damaged = bytearray(path.read_bytes())
    damaged[40:400] = bytes(360)
    path.write_bytes(damaged)
    result = CliRunner().invoke(main, ["history", "import", str(path)])
    assert result.exit_code == 1
    assert f"Error: {path} cannot be read: " in result.output, result.exception
    assert "(nothing was written)" in result.output


async def test_a_topic_that_is_missing_is_not_asked_for_by_name() -> None:
    """A broker with auto.create.topics.enable would create it."""

    class Admin:
        async def start(self) -> None: ...
        async def close(self) -> None: ...

        async def list_topics(self) -> list[str]:
            return ["others"]

        async def describe_topics(self, names: list[str]) -> None:
            pytest.fail(f"{names} would be there now")

    connection: Any = SimpleNamespace(admin=Admin)
    with pytest.raises(TopologyError, match=r"topic events must exist \(--topic events=NAME names another\)"):
        await histories._partitions(connection, TopicNames(events="events"), "events")


def test_what_is_no_users_id_is_refused() -> None:
    result = CliRunner().invoke(main, ["history", "inspect", "", "--broker", "127.0.0.1:1"])
    assert (result.exit_code, result.output) == (
        1,
        "Error: invalid_event: user_id must be a string of 1 to 256 characters, not ''\n",
    )
