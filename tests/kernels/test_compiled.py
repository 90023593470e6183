"""What is written in C: compiled once, and done without where that can't be."""

from __future__ import annotations

import random
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.kernels.test_beam_select import random_case
from xgr_kernels import beam_select, compiled, dispatch, rms_norm

SOURCE = "int seven(void) { return 7; }"
COMPILER = compiled.find_compiler()

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a library, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "some_op" / "cpu.c"
    path.parent.mkdir()
    path.write_text(SOURCE)
    monkeypatch.setattr(compiled, "SOURCES", (path,))
    monkeypatch.setattr(compiled, "library", compiled.library.__wrapped__)
    return path


def cached(source: Path) -> list[Path]:
    return sorted((source.parents[1] / "cache" / "xgr-kernels").iterdir())


def written(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@needs_compiler
def test_it_is_compiled_once_and_anew_when_it_changes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.function("seven")() == 7
    (first,) = cached(source)
    run = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: pytest.fail("it compiles again"))
    assert compiled.function("seven")() == 7
    monkeypatch.setattr("subprocess.Popen", run)
    source.write_text(SOURCE.replace("7", "8"))
    assert compiled.function("seven")() == 8
    assert len(cached(source)) == 2
    assert first in cached(source)


@needs_compiler
def test_several_that_compile_it_together_each_have_it(source: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: compiled.function("seven")(), range(4)))
    assert found == [7] * 4
    assert len(cached(source)) == 1


@needs_compiler
@pytest.mark.parametrize("left", [b"", b"text", None, 4096])
def test_what_is_not_whole_is_compiled_again(source: Path, left: bytes | int | None) -> None:
    """It would end the process that loads it, at every start."""
    kept = compiled._kept(compiled._cache(), COMPILER, [source])
    if left is None:
        kept.unlink()
    else:
        kept.write_bytes(left if isinstance(left, bytes) else kept.read_bytes()[:left])
    assert compiled.function("seven")() == 7


@needs_compiler
@pytest.mark.parametrize("digest", [b"", b"text", b"\xff\xfe\x80", None])
def test_what_has_not_its_digest_is_compiled_again(source: Path, digest: bytes | None) -> None:
    kept = compiled._kept(compiled._cache(), COMPILER, [source])
    if digest is None:
        kept.with_name(compiled.DIGEST).unlink()
    else:
        kept.with_name(compiled.DIGEST).write_bytes(digest)
    assert compiled.function("seven")() == 7
    assert compiled._is_whole(kept.parent)


@needs_compiler
@pytest.mark.parametrize("how", ["a file", "writable by others"])
def test_a_cache_that_is_not_to_be_used(source: Path, how: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    if how == "a file":
        cache.write_text("")
    else:
        (cache / "xgr-kernels").mkdir(parents=True)
        (cache / "xgr-kernels").chmod(0o777)
    before = set(Path("/tmp").glob("xgr-kernels-*"))
    assert compiled.function("seven")() == 7
    assert how == "a file" or cached(source) == []
    assert set(Path("/tmp").glob("xgr-kernels-*")) <= before


@needs_compiler
def test_what_does_not_compile_is_done_without(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    source.write_text("int seven(void) { return")
    assert compiled.library() is None
    assert "what is written in C for a CPU is not used, torch's operations and NumPy's are" in caplog.text
    assert "expected expression" in caplog.text
    assert cached(source) == []


@needs_compiler
def test_what_a_compiler_says_need_not_be_text(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(written(tmp_path / "cc", f'printf "\\374" >&2; exec {shlex.join(COMPILER)} "$@"')))
    assert compiled.function("seven")() == 7


@needs_compiler
def test_a_compiler_with_arguments(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int seven(void) { return SEVEN; }")
    monkeypatch.setenv("CC", f"{shlex.join(COMPILER)} -DSEVEN=7")
    assert compiled.function("seven")() == 7


@pytest.mark.parametrize("chosen", ["", " ", "'", "no-such-program -O3"])
def test_what_names_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("CC", chosen)
    assert compiled.find_compiler() is None
    assert compiled.library() is None


@needs_compiler
@pytest.mark.parametrize("left", ["truncate -s 4096", "truncate -s 0", "echo text >"])
def test_what_a_compiler_leaves_broken_is_not_kept(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: str
) -> None:
    """It would end the process that loads it. When the compiler is whole again, so is the library."""
    broken = f'{shlex.join(COMPILER)} "$@" && while [ "$1" != -o ]; do shift; done && {left} "$2"'
    fake = written(tmp_path / "cc", broken)
    monkeypatch.setenv("CC", str(fake))
    assert compiled.library() is None
    assert cached(source) == []
    written(fake, f'exec {shlex.join(COMPILER)} "$@"')
    assert compiled.function("seven")() == 7


def test_a_compiler_that_hangs(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", str(written(tmp_path / "cc", f"sleep 60 & echo $! > {tmp_path}/child; wait")))
    monkeypatch.setattr(compiled, "TIMEOUT_S", 0.3)
    started = time.monotonic()
    assert compiled.library() is None
    assert time.monotonic() - started < 5
    assert "timed out" in caplog.text
    child = int((tmp_path / "child").read_text())
    time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]


def test_without_a_compiler_the_reference_serves(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr(dispatch, "library", compiled.library)
    assert dispatch._module("beam_select", on_cuda=False, on_cpu=True) == "reference"
    with pytest.raises(RuntimeError, match="seven is not compiled"):
        compiled.function("seven")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_of_a_process_does_not_matter(dtype: torch.dtype) -> None:
    """C writes float32, whatever torch makes by default."""
    case = random_case(random.Random(3))
    x, weight = torch.randn(40, 33), torch.rand(33)
    before = case.select(beam_select), rms_norm(x, weight, 1e-6, x)
    torch.set_default_dtype(dtype)
    try:
        after = case.select(beam_select), rms_norm(x, weight, 1e-6, x)
    finally:
        torch.set_default_dtype(torch.float32)
    for old, new in zip(before, after, strict=True):
        assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(old, new, strict=True))
