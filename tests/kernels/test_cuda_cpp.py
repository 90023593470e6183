"""What becomes of attention where CUDA C++ can't be compiled. That it computes what it should: tests/gpu."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from types import SimpleNamespace

import pytest
import torch

from xgr_kernels import cuda_cpp


def test_without_bindings_it_is_not_available_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(cuda_cpp, "importlib", SimpleNamespace(import_module=missing))
    with caplog.at_level(logging.WARNING):
        assert not cuda_cpp.available.__wrapped__(torch.device("cuda", 0))
    assert "no CUDA C++, Triton's kernels are used instead: No module named 'cuda.bindings.nvrtc'" in caplog.text


def test_a_call_that_fails_names_the_status() -> None:
    class Failed:
        name = "CUDA_ERROR_INVALID_VALUE"

    with pytest.raises(RuntimeError, match="CUDA: CUDA_ERROR_INVALID_VALUE"):
        cuda_cpp._checked((Failed(), None))
    assert cuda_cpp._checked((0, "found")) == "found"
    assert cuda_cpp._checked((0,)) is None


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the kernels need triton")
@pytest.mark.parametrize(
    ("dtype", "page_dtype", "dim", "page_size", "rows"),
    [
        (torch.float32, torch.float32, 128, 64, 512),
        (torch.float32, torch.bfloat16, 128, 64, 512),
        (torch.bfloat16, torch.float16, 128, 64, 512),
        (torch.bfloat16, torch.float8_e4m3fn, 128, 64, 512),
        (torch.bfloat16, torch.bfloat16, 64, 64, 512),
        (torch.bfloat16, torch.bfloat16, 128, 16, 512),
        (torch.bfloat16, torch.bfloat16, 128, 64, 128),
        (torch.bfloat16, torch.bfloat16, 128, 64, 512),
    ],
)
def test_what_it_is_not_for_goes_to_triton(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, page_dtype: torch.dtype, dim: int, page_size: int, rows: int
) -> None:
    paged = importlib.import_module("xgr_kernels.paged")
    sizes = {"rows": rows, "requests": 2, "dim": dim, "page_size": page_size}

    def chosen() -> bool:
        tiling = paged.pipelined_tiling(
            **sizes, dtype=dtype, page_dtype=page_dtype, device=torch.device("cuda", 0), splits=16
        )
        return tiling is not None

    monkeypatch.setattr(paged, "_runs_on", lambda _: True)
    own = (torch.bfloat16, torch.bfloat16, 128, 64, 512)
    assert chosen() == ((dtype, page_dtype, dim, page_size, rows) == own)
    monkeypatch.setattr(paged, "_runs_on", lambda _: False)
    assert not chosen()


def test_what_the_driver_does_not_load_is_not_available(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(_: bytes) -> None:
        raise RuntimeError("CUDA: CUDA_ERROR_INVALID_IMAGE")

    monkeypatch.setattr(cuda_cpp, "_compiled", lambda *_: b"newer than the driver")
    monkeypatch.setattr(cuda_cpp, "_loaded", refused)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    with caplog.at_level(logging.WARNING):
        assert not cuda_cpp.available.__wrapped__(torch.device("cuda", 0))
    assert "Triton's kernels are used instead: CUDA: CUDA_ERROR_INVALID_IMAGE" in caplog.text
