"""How near a kernel's result must come to the float32 reference's on the same inputs."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-6}
"""‖kernel − reference‖ / ‖reference‖: a few roundings of the output."""


def agree(got: Tensor, want: Tensor, tolerance: float | None = None) -> None:
    error = float((got.float() - want.float()).norm() / want.float().norm())
    assert error < (tolerance or TOLERANCE[got.dtype])


def widened(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() if x.is_floating_point() else x for x in tensors)
