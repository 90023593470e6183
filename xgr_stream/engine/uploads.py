"""A catalog's arrays on their way to the device, beside the batches."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE_BYTES = 4 << 20
"""Copied at once: 0.1 ms of the bus. CUDA copies what is not pinned as a whole, and other threads' launches wait."""
BUFFERS = 2
"""One is filled while the other is on its way."""


class Uploads:
    """Copies through pinned memory in pieces, on the current stream. For one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[Tensor] = []
        """Made with the first copy and kept: to pin memory holds up the device."""
        self._sent: list[torch.cuda.Event | None] = []
        self._next = 0

    def tensor(self, array: NDArray[Any], size: int | None = None) -> Tensor:
        """The array on the device, with room for `size` values, zeros behind its own; on a CPU, without `size`, the
        array itself."""
        own = torch.from_numpy(array)
        if self._device.type == "cpu" and size is None:
            return own
        tensor = torch.empty(len(own) if size is None else size, dtype=own.dtype, device=self._device)
        tensor[len(own) :].zero_()
        if self._device.type == "cpu":
            tensor[: len(own)] = own
        else:
            self.copy(own, tensor)
        return tensor

    def copy(self, own: Tensor, into: Tensor) -> None:
        """Write this, of the host, to the beginning of a tensor of the device and of the same dtype. It need not stay
        as it is afterwards. [values]"""
        if not self._buffers:
            cuda = self._device.type == "cuda"
            self._buffers = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=cuda) for _ in range(BUFFERS)]
            self._sent = [torch.cuda.Event() if cuda else None for _ in range(BUFFERS)]
        step = PIECE_BYTES // own.element_size()
        for piece, place in zip(own.split(step), into[: len(own)].split(step), strict=True):
            sent = self._sent[self._next]
            if sent is not None:
                sent.synchronize()
            staged = self._buffers[self._next][: piece.nbytes].view(own.dtype)
            staged.copy_(piece)
            place.copy_(staged, non_blocking=True)
            if sent is not None:
                sent.record()
            self._next = (self._next + 1) % BUFFERS
