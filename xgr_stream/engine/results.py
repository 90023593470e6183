"""What a decode found, on its way back to the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_stream.engine.lanes import Lane, Mark


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Nodes and scores of one decode, in host memory once the mark is done."""

    host: _Host
    mark: Mark
    free: list[_Host]

    def wait(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Nodes and scores [rows] each. Blocks until they are there; to be called once."""
        self.mark.wait()
        nodes, scores = self.host.nodes.copy(), self.host.scores.copy()
        self.free.append(self.host)
        return nodes, scores


class _Host:
    """Host memory that results [rows] travel to."""

    def __init__(self, rows: int, pinned: bool) -> None:
        self.buffer = torch.empty(2 * rows, dtype=torch.int32, pin_memory=pinned)
        """[2 · rows]: nodes, then the bits of the scores."""
        both: NDArray[np.int32] = self.buffer.numpy()
        self.nodes, self.scores = both[:rows], both[rows:].view(np.float32)


class ResultBuffers:
    """The device memory that decodes write their results to, and pinned host memory that they travel to."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._outputs: dict[int, Tensor] = {}
        self._free: dict[int, list[_Host]] = {}

    def write(self, nodes: Tensor, scores: Tensor) -> None:
        """Put the results [rows] of a decode where `send` finds them; may be captured."""
        rows = len(nodes)
        output = self._output(rows)
        output[:rows].copy_(nodes)
        output[rows:].copy_(scores.view(torch.int32))

    def send(self, rows: int, lane: Lane) -> Results:
        """Start bringing home what the last `write` of so many rows wrote on this lane, which is the current one."""
        free = self._free.setdefault(rows, [])
        host = free.pop() if free else _Host(rows, pinned=self._device.type == "cuda")
        host.buffer.copy_(self._output(rows), non_blocking=True)
        return Results(host, lane.mark(), free)

    def _output(self, rows: int) -> Tensor:
        output = self._outputs.get(rows)
        if output is None:
            output = self._outputs[rows] = torch.empty(2 * rows, dtype=torch.int32, device=self._device)
        return output
