"""Which implementation of an op a tensor takes: Triton's on CUDA, C's on a CPU, the reference elsewhere."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from xgr_kernels.compiled import SOURCES, library


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Within, this thread's kernels are launched there, which where their tensors are does not decide: Triton takes the
    current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def implementation(op: str, tensor: Tensor, name: str | None = None) -> Callable[..., Any]:
    """The function `name` (by default `op`) of the op's kernel.py for a CUDA tensor, where triton is installed, of its
    cpu.py for a CPU's, where there is one and C can be compiled, else of its reference.py. The latter too for whatever
    a cpu.py returns `NotImplemented` for."""
    return _implementation(op, name or op, tensor.is_cuda, tensor.is_cpu)


@functools.cache
def _implementation(op: str, name: str, on_cuda: bool, on_cpu: bool) -> Callable[..., Any]:
    module = _module(op, on_cuda, on_cpu)
    function = _function(op, module, name)
    return _or_else(function, _function(op, "reference", name)) if module == "cpu" else function


def _function(op: str, module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(f"xgr_kernels.{op}.{module}"), name)
    return function


def _or_else(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    def either(*args: Any, **options: Any) -> Any:
        result = first(*args, **options)
        return second(*args, **options) if result is NotImplemented else result

    return either


def _module(op: str, on_cuda: bool, on_cpu: bool) -> str:
    if on_cuda and importlib.util.find_spec("triton") is not None:
        return "kernel"
    in_c = on_cpu and any(source.parent.name == op for source in SOURCES)
    return "cpu" if in_c and library() is not None else "reference"
