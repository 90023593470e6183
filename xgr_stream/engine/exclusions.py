"""What each request of a batch excludes, and the trie nodes that this empties, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from xgr_kernels import NodeMasks, mask_exclude
from xgr_stream.catalog import ResolvedFilter
from xgr_stream.engine.lanes import Mark
from xgr_stream.engine.staging import Int32Array, Staging, fill_starts

ROOM = 1 << 17
"""Excluded items of a batch before CUDA's buffers for them grow, which holds up the device: 1 MB, and 0.5 MB a level.
Eight requests may have 80,000."""
INT32S_A_KEY = 2


class Exclusions:
    """The excluded items of a batch's requests, brought with it, and the nodes that they empty, found on the device.

    What captured graphs read stays where it is from batch to batch; when it must move, `generation` changes. Work goes
    to the current stream, which is to be the decodes'.
    """

    generation = 0
    emptied_nodes: tuple[Tensor, ...]
    """Per level, int32: nodes that each request's exclusions emptied, and numbers that are no node's, ascending inside
    each request, as `find` found them. On CUDA a buffer whose used part the requests' starts tell."""

    def __init__(self, levels: int, device: torch.device) -> None:
        self._levels = levels
        self._device = device
        self._allocate(ROOM if device.type == "cuda" else 0)

    @property
    def num_bytes(self) -> int:
        """On the device."""
        return sum(tensor.nbytes for tensor in (self._excluded, *self.emptied_nodes))

    def send(self, filters: Sequence[ResolvedFilter]) -> None:
        """Have what a batch excludes on the device, for the work that follows on this stream. Then tell `read_by`."""
        excluded = [f.excluded for f in filters if len(f.excluded)]
        if not excluded:
            return
        count = sum(map(len, excluded))
        if count > len(self._excluded):
            if self._device.type == "cuda":  # wait for all work that may still read what is about to be replaced
                torch.cuda.synchronize()
            self._allocate(2 * count)
        used = INT32S_A_KEY * count

        def write(arrays: Mapping[str, Int32Array]) -> None:
            np.concatenate(excluded, out=arrays["keys"][:used].view(np.int64))

        self._staging.send(write, used)

    def read_by(self, mark: Mark) -> None:
        """With this mark, what was sent so far has been read."""
        self._staging.read_by(mark)

    def shapes(self, requests: int) -> dict[str, tuple[int, ...]]:
        """Of the host arrays that `write` fills for so many requests."""
        return {"emptied_starts": (requests + 1,)}

    def write(self, filters: Sequence[ResolvedFilter], arrays: Mapping[str, Int32Array]) -> None:
        """Fill a batch's host arrays, which come zeroed: `emptied_starts` [requests + 1], where each request's
        exclusions, and emptied nodes, begin. There may be more requests than filters: what is beyond them has none."""
        lengths = [len(f.excluded) for f in filters]
        if any(lengths):
            fill_starts(arrays["emptied_starts"], lengths)

    def find(self, masks: NodeMasks, inputs: Mapping[str, Tensor]) -> None:
        """Find the nodes that a batch's exclusions empty, from what `write` and `send` brought: one kernel for all
        levels of all requests, which may be captured."""
        excluded = self._excluded
        if self._device.type == "cpu":  # nothing is captured there, and to go through the levels for nothing takes time
            count = int(inputs["emptied_starts"][-1])
            excluded = excluded[:count]
            self.emptied_nodes = tuple(torch.empty(count, dtype=torch.int32) for _ in range(self._levels))
            if not count:
                return
        mask_exclude(
            masks,
            excluded,
            starts=inputs["emptied_starts"],
            mask_index=inputs["mask_index"],
            num_nodes=inputs["num_nodes"],
            emptied=self.emptied_nodes,
        )

    def _allocate(self, size: int) -> None:
        """All of it, or nothing where there is no memory: graphs read what there was before."""
        staging = Staging({"keys": (INT32S_A_KEY * size,)}, self._device)
        emptied = [torch.zeros(size, dtype=torch.int32, device=self._device) for _ in range(self._levels)]
        self._staging, self.emptied_nodes = staging, tuple(emptied)
        self._excluded = staging.tensors["keys"].view(torch.int64)
        """As `mask_exclude` takes them, [room] int64."""
        self.generation += 1
