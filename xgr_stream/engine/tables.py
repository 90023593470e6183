"""Small host arrays that a forward needs on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def page_table(pages: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Page lists of unequal lengths as one table, filled up with page 0. [users, max_pages]"""
    table = np.zeros((len(pages), max(len(p) for p in pages)), dtype=np.int32)
    for row, own in zip(table, pages, strict=True):
        row[: len(own)] = own
    return table


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array as a tensor; on the CPU it shares the array's memory."""
    return torch.from_numpy(array).to(device, non_blocking=True)
