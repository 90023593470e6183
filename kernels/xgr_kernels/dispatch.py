"""Which implementation of an op a tensor takes: Triton's on CUDA, the reference elsewhere."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from torch import Tensor


def implementation(op: str, tensor: Tensor, name: str | None = None) -> Callable[..., Any]:
    """The function `name` (by default `op`) of the op's kernel.py for a CUDA tensor, where triton is installed, else of
    its reference.py."""
    return _implementation(op, name or op, tensor.is_cuda)


@functools.cache
def _implementation(op: str, name: str, on_cuda: bool) -> Callable[..., Any]:
    kernel = on_cuda and importlib.util.find_spec("triton") is not None
    module = importlib.import_module(f"xgr_kernels.{op}.{'kernel' if kernel else 'reference'}")
    function: Callable[..., Any] = getattr(module, name)
    return function
