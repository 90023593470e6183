"""What is written in C: compiled once, and done without where that can't be."""

from __future__ import annotations

import logging
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xgr_kernels import compiled, dispatch

SOURCE = "int seven(void) { return 7; }"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an op, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "some_op" / "cpu.c"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


needs_compiler = pytest.mark.skipif(compiled.find_compiler() is None, reason="needs a C compiler")


def cached(source: Path) -> list[Path]:
    return sorted((source.parents[1] / "cache" / "xgr-kernels").iterdir())


@needs_compiler
def test_it_is_compiled_once_and_anew_when_it_changes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.function(source, "seven")() == 7
    (first,) = cached(source)
    run = subprocess.run
    monkeypatch.setattr("subprocess.run", lambda *args, **options: pytest.fail("it compiles again"))
    compiled.library.cache_clear()
    assert compiled.function(source, "seven")() == 7
    monkeypatch.setattr("subprocess.run", run)
    source.write_text(SOURCE.replace("7", "8"))
    compiled.library.cache_clear()
    assert compiled.function(source, "seven")() == 8
    assert len(cached(source)) == 2
    assert first in cached(source)


@needs_compiler
def test_several_that_compile_it_together_each_have_it(source: Path) -> None:
    compiler = compiled.find_compiler()
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda _: compiled._compiled(source, compiler), range(4)))
    assert paths == cached(source) * 4


@needs_compiler
def test_a_home_that_cannot_be_written_to(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source.parents[1] / "cache").write_text("a file")
    assert compiled.function(source, "seven")() == 7


@needs_compiler
def test_what_does_not_compile_is_done_without(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    source.write_text("int seven(void) { return")
    assert compiled.library(source) is None
    assert "some_op in C is not used, torch's operations are" in caplog.text
    assert "expected expression" in caplog.text
    assert cached(source) == []


def test_without_a_compiler_the_reference_serves(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(compiled, "find_compiler", lambda: None)
    monkeypatch.setattr(dispatch, "library", compiled.library.__wrapped__)
    assert dispatch._module("beam_select", on_cuda=False, on_cpu=True) == "reference"
    assert "no C compiler: beam_select in C is not used" in caplog.text
    with pytest.raises(RuntimeError, match="is not compiled"):
        compiled.function(source, "seven")
