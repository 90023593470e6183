"""Each op's tests run on every implementation that this machine has: always the reference; what is written in C, where
there is a compiler; with triton the kernel too, on the GPU if there is one and else in Triton's interpreter."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable

import pytest
import torch

from tests import profiles
from xgr_kernels import dispatch
from xgr_kernels.compiled import library

Run = Callable[..., object]

INTERPRETER_CASES = 2
"""Of each test, evenly spaced: Triton's interpreter takes seconds where the reference takes milliseconds (beam_select's
80 cases: four minutes). XGR_EVERY_CASE=1 runs all of them. On CI those that only a seed tells apart are one."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("XGR_EVERY_CASE") == "1":
        return
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        if params and "interpreter" in (params.get("run"), params.get("device")):
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = {
        id(item)
        for cases in by_test.values()
        for place, item in enumerate(cases)
        if place % -(-len(cases) // _how_many(item))
    }
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
    items[:] = [item for item in items if id(item) not in left_out]


def _how_many(item: pytest.Item) -> int:
    differ_by_seed = item.callspec.params.keys() <= {"run", "device", "seed"}  # type: ignore[attr-defined]
    return 1 if differ_by_seed and profiles.PROFILE == "ci" else INTERPRETER_CASES


def _implementations(op: str) -> list[str]:
    found = ["reference"]
    if importlib.util.find_spec(f"xgr_kernels.{op}.cpu"):
        found.append("cpu")
    if importlib.util.find_spec("triton") and importlib.util.find_spec(f"xgr_kernels.{op}.kernel"):
        found.append("cuda" if torch.cuda.is_available() else "interpreter")
    return found


def _op(test: pytest.Metafunc | pytest.FixtureRequest) -> str:
    module: str = test.module.__name__
    return module.rpartition("test_")[2]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in ("run", "device"):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, _implementations(_op(metafunc)), indirect=True)


@pytest.fixture
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the op of this test module on CPU tensors; what it writes in place comes back too."""
    device = _use(request, monkeypatch)
    function = getattr(importlib.import_module("xgr_kernels"), _op(request))

    def call(*args: object, **options: object) -> object:
        given = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
        moved = {id(x): x.to(device) for x in given}
        result = function(
            *(moved.get(id(x), x) for x in args), **{name: moved.get(id(x), x) for name, x in options.items()}
        )
        for x in given:
            x.copy_(moved[id(x)])
        return result.cpu() if isinstance(result, torch.Tensor) else [x.cpu() for x in result]

    return call


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the op of this test module, called through its wrapper, takes its tensors."""
    return _use(request, monkeypatch)


def _use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have this test's op take the implementation that it is run for; returns the device to run it on."""
    if request.param == "cuda":
        return "cuda"
    module = "kernel" if request.param == "interpreter" else request.param
    if module == "cpu" and library() is None:
        pytest.skip("needs a C compiler")
    monkeypatch.setattr("xgr_kernels.dispatch._module", lambda op, *_: module if op == _op(request) else "reference")
    monkeypatch.setattr("xgr_kernels.dispatch._implementation", dispatch._implementation.__wrapped__)
    if request.param == "interpreter":
        _round_to_fp8_as_torch(monkeypatch)
    return "cpu"


def _round_to_fp8_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter (3.6) loses the carry of a mantissa into an odd exponent, by which 2 % of random numbers are
    half of what they should be; on a GPU the hardware rounds, to the nearest as torch does."""
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(x, source, target, rounding):  # type: ignore[no-untyped-def]
        if (source, target) == (language.float32, language.float8e4nv):
            return torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return convert(x, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", converted)
