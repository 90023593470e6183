"""Which trie nodes each request of a batch may use, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_stream.catalog import Catalog, ResolvedFilter
from xgr_stream.engine.staging import Int32Array, fill_starts

MAX_MASKS = 16
"""Tag combinations kept on the device: 1.5 MB each at 1.5 million items."""
EMPTIED_NODES = 1 << 16
"""Nodes per level that a batch's exclusions may empty before the device's buffers grow: 256 KB each."""

_generations = count()


@dataclass(frozen=True, slots=True, eq=False)
class TrieTensors:
    """The catalog's trie on the device; see `xgr_stream.catalog.Trie`."""

    child_starts: tuple[Tensor, ...]
    """Per level [nodes of the level's parents + 1] int32."""
    child_codes: tuple[Tensor, ...]
    """Per level [nodes] int32."""

    @property
    def num_nodes(self) -> tuple[int, ...]:
        """Nodes that each level chooses from."""
        return tuple(len(codes) for codes in self.child_codes)


class LegalityTables:
    """The device's copy of the catalog: its trie, copied once, and its masks, copied again when its version moves.

    All tensors stay where they are from batch to batch, for captured graphs; when one must move, `generation` changes.
    """

    node_masks: tuple[Tensor, ...]
    """Per level [masks, nodes] bool: row 0 the live nodes, each further row those that are tag-allowed too."""
    emptied_nodes: tuple[Tensor, ...]
    """Per level, int32: nodes that each request's exclusions emptied, sorted within the request. On CUDA a buffer whose
    used part the requests' starts tell."""

    def __init__(self, catalog: Catalog, device: torch.device) -> None:
        self._catalog = catalog
        self._device = device
        trie = catalog.trie
        self.trie = TrieTensors(
            tuple(torch.from_numpy(starts).to(device) for starts in trie.child_starts),
            tuple(torch.from_numpy(codes).to(device) for codes in trie.node_codes),
        )
        self._no_nodes = (torch.empty(0, dtype=torch.int32),) * catalog.levels
        self._version = ""
        self._mask_rows: dict[object, int] = {}
        self._allocate_masks(MAX_MASKS if device.type == "cuda" else 2)
        self._allocate_emptied(EMPTIED_NODES if device.type == "cuda" else 0)

    def bring(self, filters: Sequence[ResolvedFilter]) -> None:
        """Have the masks and emptied nodes of a batch on the device, for the work that follows on this stream."""
        if self._version != self._catalog.version:
            self._version = self._catalog.version
            self._start_over()
        new = {f.tags_key: f.node_masks for f in filters if f.tags_key not in self._mask_rows}
        if len(self._mask_rows) + len(new) > max(MAX_MASKS, len(self.node_masks[0])):
            self._start_over()
            new = {f.tags_key: f.node_masks for f in filters if f.tags_key is not None}
        needed = len(self._mask_rows) + len(new)
        if needed > len(self.node_masks[0]):
            self._allocate_masks(2 * needed)
        for key, masks in new.items():
            if masks is not None:
                self._mask_rows[key] = len(self._mask_rows)
                self._write_masks(self._mask_rows[key], masks)
        self._write_emptied(filters)

    def write(self, filters: Sequence[ResolvedFilter], arrays: Mapping[str, Int32Array]) -> None:
        """Fill a batch's host arrays: `mask_index` [requests], the mask that each request uses, and `emptied_starts`
        [levels, requests + 1]. After `bring`."""
        arrays["mask_index"][: len(filters)] = [self._mask_rows[f.tags_key] for f in filters]
        if not any(len(f.excluded) for f in filters):
            return  # the arrays come zeroed
        for level, starts in enumerate(arrays["emptied_starts"]):
            fill_starts(starts, [len(f.emptied[level]) for f in filters])

    def _write_emptied(self, filters: Sequence[ResolvedFilter]) -> None:
        if not any(len(f.excluded) for f in filters):
            if self._device.type == "cpu":
                self.emptied_nodes = self._no_nodes
            return
        nodes = [np.concatenate([f.emptied[level] for f in filters]) for level in range(self._catalog.levels)]
        if self._device.type == "cpu":
            self.emptied_nodes = tuple(map(torch.from_numpy, nodes))
            return
        most = max(map(len, nodes))
        if most > len(self.emptied_nodes[0]):
            self._allocate_emptied(2 * most)
        if most:
            for buffer, own in zip(self.emptied_nodes, nodes, strict=True):
                buffer[: len(own)].copy_(torch.from_numpy(own), non_blocking=True)

    def _start_over(self) -> None:
        self._mask_rows = {None: 0}
        self._write_masks(0, [counts > 0 for counts in self._catalog.live_counts[1:]])

    def _write_masks(self, row: int, masks: Sequence[NDArray[np.bool_]]) -> None:
        for table, mask in zip(self.node_masks, masks, strict=True):
            table[row].copy_(torch.from_numpy(mask), non_blocking=True)

    def _allocate_masks(self, rows: int) -> None:
        self._settle()
        old = self.node_masks if self._mask_rows else ()
        sizes = self.trie.num_nodes
        self.node_masks = tuple(torch.zeros(rows, size, dtype=torch.bool, device=self._device) for size in sizes)
        for table, before in zip(self.node_masks, old, strict=False):
            table[: len(before)] = before
        self.generation = next(_generations)

    def _allocate_emptied(self, size: int) -> None:
        self._settle()
        self.emptied_nodes = tuple(
            torch.zeros(size, dtype=torch.int32, device=self._device) for _ in range(self._catalog.levels)
        )
        self.generation = next(_generations)

    def _settle(self) -> None:
        """Wait for all work that may still read the tensors about to be replaced. They seldom are."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
