"""Programmatic dependent launch: a kernel is set up while the one before it drains, and waits before it reads."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def dependent_launch(tensor: Tensor) -> bool:
    """Whether kernels on this tensor's device may be launched so: from Hopper on, never in Triton's interpreter."""
    return tensor.is_cuda and _supported(tensor.device.index or 0)


@functools.cache
def _supported(device: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 9
