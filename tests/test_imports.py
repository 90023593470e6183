"""The direction of imports, read from the sources, and what importing the package costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xgr_stream"
KERNELS = ROOT / "kernels" / "xgr_kernels"

BASE = {"errors", "types", "config", "metrics", "collector"}
LAYERS = (
    {"examples", "cli"},
    {"testing"},
    {"stream", "client"},
    {"scheduler", "evaluation"},
    {"engine"},
    {"model", "cache", "catalog", "history"},
    {"xgr_kernels"},
)
"""From left to right: a room may import rooms of later layers and the base, never its own layer or an earlier one."""

ONE_ROOM = {"client": "stream"}
"""The client speaks the stream's protocol, and the stream calls other workers through it."""

BASE_IMPORTS = {
    "errors": set[str](),
    "types": {"errors"},
    "config": {"errors", "types"},
    "metrics": {"errors", "types", "config"},
    "collector": set[str](),
}


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import of a file, those inside functions and for type checkers too.
    `from package import name` yields `package.name`, since the name may be a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                above = path.relative_to(ROOT).parts[: -node.level]
                package = ".".join((*above, *filter(None, [node.module])))
            yield from ((node.lineno, f"{package}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    """The room that a module belongs to; "" for the public surface itself; None for what is not ours."""
    top, *rest = module.split(".")
    if top in ("xgr_kernels", "examples"):
        return top
    if top != "xgr_stream":
        return None
    return rest[0] if rest and rest[0] in BASE.union(*LAYERS) else ""


def layer_of(room: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if room in layer)


def allowed(importer: str, room: str) -> bool:
    if ONE_ROOM.get(importer, importer) == ONE_ROOM.get(room, room):
        return True
    if importer in BASE:
        return room in BASE_IMPORTS[importer]
    if room in BASE:
        return importer != "xgr_kernels"
    if room == "":
        return layer_of(importer) <= layer_of("testing")
    return layer_of(importer) < layer_of(room)


def files_of_rooms() -> list[tuple[str, Path]]:
    found = [("examples", path) for path in modules(ROOT / "examples")]
    found += [("xgr_kernels", path) for path in modules(KERNELS)]
    for path in modules(PACKAGE):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            found.append((room, path))
    return found


def test_every_room_has_its_place() -> None:
    rooms = {room for room, _ in files_of_rooms()}
    assert rooms <= BASE.union(*LAYERS)


def test_imports_go_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {importer} may not import {module}"
        for importer, path in files_of_rooms()
        for line, module in imported(path)
        if (room := room_of(module)) is not None and not allowed(importer, room)
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_need_torch_and_triton_only() -> None:
    known = {*sys.stdlib_module_names, "torch", "triton", "xgr_kernels"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in modules(KERNELS)
        for line, module in imported(path)
        if module.split(".")[0] not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_reads_the_environment() -> None:
    readers = {
        str(path.relative_to(PACKAGE))
        for path in modules(PACKAGE)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb")
    }
    assert readers == set()


def in_a_fresh_interpreter(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_fast_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, time, json; began = time.perf_counter(); import xgr_stream; took = time.perf_counter() - began;"
        "print(json.dumps([took, [m for m in ('torch', 'faust', 'numpy', 'aiokafka') if m in sys.modules]]))"
    )
    runs = [json.loads(in_a_fresh_interpreter(program)) for _ in range(3)]
    assert all(heavy == [] for _, heavy in runs)
    assert min(took for took, _ in runs) < 0.3


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (("types", "config", "cli.main"), ("torch", "faust", "aiokafka", "numpy")),
        (("client",), ("torch", "faust")),
        (("engine", "stream.processor"), ("faust", "aiokafka")),
    ],
)
def test_importing_some_modules_does_not_load(modules: tuple[str, ...], absent: tuple[str, ...]) -> None:
    imports = "; ".join(f"import xgr_stream.{module}" for module in modules)
    program = f"import sys; {imports}; print(*(m for m in {absent!r} if m in sys.modules))"
    assert in_a_fresh_interpreter(program).split() == []
