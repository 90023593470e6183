"""C for the CPU, compiled once on each machine that has a compiler. Where there is none, the references serve."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

logger = logging.getLogger(__name__)

SOURCES = tuple(sorted(Path(__file__).parent.glob("*/cpu.c")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
OPTIONS = (
    *("-O3", "-shared", "-fPIC", "-ffp-contract=fast"),
    # Sums in any order, as vectors need. Not -ffast-math: linked with it, a library flushes denormals in all threads.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)
FOR_THIS_CPU = ("-march=native", "-mcpu=native")
"""What tells a compiler to use all that this CPU has; some know but one of them."""
TIMEOUT_S = 30
LIBRARY, DIGEST = "cpu.so", "sha256"


def function(name: str, *arguments: Any) -> Callable[..., Any]:
    """One of the library's functions, which takes these ctypes and returns an int, or nothing that means anything."""
    functions = library()
    if functions is None:
        raise RuntimeError(f"{name} is not compiled")
    found = getattr(functions, name)
    found.argtypes = arguments
    return cast(Callable[..., Any], found)


@functools.cache
def library(sources: tuple[Path, ...] | None = None) -> ctypes.CDLL | None:
    """The functions of these, by default of all `SOURCES`; None where they can't be had, which is logged. The first
    call compiles them, in a second or two, unless that was done on this machine before."""
    sources = SOURCES if sources is None else sources
    compiler, unused = find_compiler(), "what is written in C for a CPU is not used, torch's operations and NumPy's are"
    if compiler is None:
        logger.info("no C compiler: %s", unused)
        return None
    try:
        folder = _cache()
        if folder is not None:
            return ctypes.CDLL(str(_kept(folder, compiler, sources)))
        with tempfile.TemporaryDirectory(prefix="xgr-kernels-") as own:
            return ctypes.CDLL(str(_compile(Path(own), compiler, sources)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "%s can't compile: %s: %s", shlex.join(compiler), unused, getattr(error, "stderr", None) or error
        )
        return None


def find_compiler() -> tuple[str, ...] | None:
    """`CC` of the environment, perhaps with arguments, empty for none; else what is there."""
    if os.name != "posix":
        return None
    chosen = os.environ.get("CC")
    for command in ("cc", "clang") if chosen is None else (chosen,):
        if found := shutil.which(command):
            return (found,)
    with contextlib.suppress(ValueError):  # nothing, or an open quote
        program, *arguments = shlex.split(chosen or "")
        if found := shutil.which(program):
            return found, *arguments
    return None


def _kept(cache: Path, compiler: tuple[str, ...], sources: Sequence[Path]) -> Path:
    """The library in the cache, for these sources, options and this CPU; compiled if it is not there, or not whole."""
    texts = [source.read_bytes() for source in (*sources, *HEADERS)]
    made_for = repr((texts, OPTIONS, compiler, platform.machine(), _cpu()))
    kept = cache / hashlib.sha256(made_for.encode()).hexdigest()[:32]
    if not _is_whole(kept):
        shutil.rmtree(kept, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=cache) as own:
            made = Path(own, "made")
            made.mkdir()
            (made / DIGEST).write_text(_digest(_compile(made, compiler, sources)))
            with contextlib.suppress(OSError):  # at once; of several processes one is the first
                made.rename(kept)
        if not _is_whole(kept):
            raise OSError(f"{kept} can't be written")
    return kept / LIBRARY


def _is_whole(kept: Path) -> bool:
    """A part of a library, as a full disk or a lost machine may leave it, would end the process that loads it."""
    try:
        return (kept / DIGEST).read_bytes() == _digest(kept / LIBRARY).encode()
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(folder: Path, compiler: tuple[str, ...], sources: Sequence[Path]) -> Path:
    made = folder / LIBRARY
    failed = []
    for target in FOR_THIS_CPU:
        command = [*compiler, *OPTIONS, target, "-o", str(made), *map(str, sources), "-lm"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        ) as running:
            try:
                _, said = running.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)  # with what it started
                raise
        if running.returncode == 0 and made.exists():
            if sys.executable:
                # Somewhere else first: what is no library, or not all of it, may end the process that loads it.
                loading = [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(made)]
                subprocess.run(loading, capture_output=True, check=True, timeout=TIMEOUT_S)
            return made
        failed.append(f"{target}: {said.decode(errors='replace').strip()}")
    raise subprocess.CalledProcessError(running.returncode, command, stderr="; ".join(failed))


def _cache() -> Path | None:
    """Where compiled libraries stay; None where they can't, or where others could put theirs."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xgr-kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # no home, or one that can't be written to
        return None
    ours = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if ours and os.access(folder, os.W_OK) else None


def _cpu() -> str:
    """What the CPU can do: a home may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
