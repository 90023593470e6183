"""Small host arrays that a step needs on the device: one buffer, one copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from xgr_stream.engine.lanes import Mark

Shapes = Mapping[str, tuple[int, ...]]
Int32Array = NDArray[np.int32]

ALIGNMENT = 4
"""int32s: each array begins at 16 bytes, so that kernels may load it in vectors."""
HOST_BUFFERS = 4
"""Copies may still be on their way from one while the next batches are written to others."""


def _layout(shapes: Shapes) -> tuple[dict[str, slice], int]:
    """Where each array lies in one buffer of int32, and the buffer's size."""
    places: dict[str, slice] = {}
    size = 0
    for name, shape in shapes.items():
        length = math.prod(shape)
        places[name] = slice(size, size + length)
        size += -(-length // ALIGNMENT) * ALIGNMENT
    return places, size


class _Host:
    """One buffer on the host, its arrays, and when the device has read it."""

    def __init__(self, shapes: Shapes, pinned: bool) -> None:
        places, size = _layout(shapes)
        self.buffer = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        self.bytes = self.buffer.numpy()
        self.arrays = {name: self.bytes[places[name]].reshape(shape) for name, shape in shapes.items()}
        self.read: Mark | None = None


class Staging:
    """Fixed int32 arrays on the device, written from the host again for each step.

    On CUDA a step's arrays are written to pinned memory and travel in one copy; captured graphs read them at addresses
    that never change. On the CPU the host's arrays are the device's.
    """

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._hosts = [_Host(shapes, cuda) for _ in range(HOST_BUFFERS if cuda else 1)]
        self._next = 0
        first = self._hosts[0].buffer
        self._device = first.to(device) if cuda else None
        places, _ = _layout(shapes)
        source = first if self._device is None else self._device
        self.tensors = {name: source[places[name]].view(shape) for name, shape in shapes.items()}

    def send(self, write: Callable[[Mapping[str, Int32Array]], None], size: int | None = None) -> None:
        """`write` fills zeroed host arrays; their content is on the device for what follows on the current stream. Then
        tell `read_by`. `size`: no more than the first so many int32s are zeroed, and sent."""
        host = self._hosts[self._next]
        if host.read is not None:
            host.read.wait()
        buffer, device = host.buffer, self._device
        host.bytes[:size].fill(0)
        write(host.arrays)
        if device is None:
            return
        if size is not None:  # else not: two slices take 20 µs, caches cold
            buffer, device = buffer[:size], device[:size]
        device.copy_(buffer, non_blocking=True)

    def read_by(self, mark: Mark) -> None:
        """With this mark, what was sent last has been read."""
        self._hosts[self._next].read = mark
        self._next = (self._next + 1) % len(self._hosts)


def fill_pages(table: Int32Array, pages: Sequence[Int32Array]) -> None:
    """Write page lists of unequal lengths into the first rows of a table. [rows, max_pages]"""
    for row, own in zip(table, pages, strict=False):
        row[: len(own)] = own


def fill_starts(starts: Int32Array, lengths: Sequence[int]) -> None:
    """Write where each of n runs of these lengths begins; the rest of `starts` repeats where the last one ends. Of few
    runs this takes a third of what NumPy's cumsum takes."""
    begins = list(accumulate(lengths, initial=0))
    starts[:] = begins + begins[-1:] * (len(starts) - len(begins))
