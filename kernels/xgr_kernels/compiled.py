"""C for the CPU, compiled once on each machine that has a compiler. Where there is none, the references serve."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

logger = logging.getLogger(__name__)

OPTIONS = (
    *("-O3", "-shared", "-fPIC", "-ffp-contract=fast"),
    # Sums in any order, as vectors need. Not -ffast-math: linked with it, a library flushes denormals in all threads.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)
FOR_THIS_CPU = ("-march=native", "-mcpu=native")
"""What tells a compiler to use all that this CPU has; each knows one of them."""
TIMEOUT_S = 60


def function(source: Path, name: str, *arguments: Any) -> Callable[..., Any]:
    """One of them, which takes these ctypes and returns an int, or nothing that means anything."""
    functions = library(source)
    if functions is None:
        raise RuntimeError(f"{source} is not compiled")
    found = getattr(functions, name)
    found.argtypes = arguments
    return cast(Callable[..., Any], found)


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file; None where they can't be had, which is logged once."""
    compiler, unused = find_compiler(), f"{source.parent.name} in C is not used, torch's operations are"
    if compiler is None:
        logger.info("no C compiler: %s", unused)
        return None
    try:
        return ctypes.CDLL(str(_compiled(source, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s can't compile %s: %s: %s", compiler, source, unused, getattr(error, "stderr", None) or error)
        return None


def find_compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _compiled(source: Path, compiler: str) -> Path:
    """Where the library lies, for this source, these options and this CPU."""
    text = source.read_bytes()
    made_for = repr((text, OPTIONS, compiler, platform.machine(), _cpu()))
    path = _folder() / f"{source.parent.name}-{hashlib.sha256(made_for.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder, path.name)
            _compile(source, made, compiler)
            made.replace(path)  # at once: other processes may be about to do the same
    return path


def _compile(source: Path, made: Path, compiler: str) -> None:
    for target in FOR_THIS_CPU:
        command = [compiler, *OPTIONS, target, "-o", str(made), str(source), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode == 0:
            return
    done.check_returncode()


def _folder() -> Path:
    """Where compiled libraries stay; one of this process alone where nothing can."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xgr-kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # no home, or one that can't be written to
        pass
    return Path(tempfile.mkdtemp(prefix="xgr-kernels-"))


def _cpu() -> str:
    """What the CPU can do: a home may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
