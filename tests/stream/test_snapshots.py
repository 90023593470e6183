"""The files of one worker's snapshots."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from xgr_stream.config import SnapshotConfig
from xgr_stream.stream.snapshots import Snapshots


def test_an_old_file_that_cannot_be_deleted_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another user's, say: an error would end the worker at every start."""
    names = ["log-0.snapshot", "log-1.snapshot", "log-2.snapshot"]
    for name in names[::2]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / names[1]).mkdir()
    for name in names:
        os.utime(tmp_path / name, (1, 1))
    nothing: Any = None
    snapshots = Snapshots(
        SnapshotConfig(str(tmp_path)), nothing, nothing, nothing, nothing, topic="log", metrics=nothing
    )
    with caplog.at_level(logging.WARNING):
        snapshots._delete_old()
        snapshots._delete_old()
    assert list(tmp_path.iterdir()) == [tmp_path / names[1]]
    [record] = caplog.records
    assert names[1] in record.getMessage()
