"""Which trie nodes each request of a batch may use, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from operator import ge
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_stream.catalog import Catalog, ResolvedFilter
from xgr_stream.catalog.filters import TagsKey
from xgr_stream.engine.staging import Int32Array, fill_starts

MAX_MASKS = 16
"""Tag combinations kept on the device: 1.5 MB each at 1.5 million items."""
EMPTIED_NODES = 1 << 16
"""Nodes per level that a batch's exclusions may empty before the device's buffers grow: 256 KB each."""

_generations = count()


HEADROOM = 1 << 16
"""Nodes per level that the device's arrays have room for beyond an eighth more: 0.5 MB and 64 KB a mask. Within it a
catalog grows where it is, and no graph is captured again."""


@dataclass(frozen=True, slots=True, eq=False)
class TrieTensors:
    """The catalog's trie on the device; see `xgr_stream.catalog.Trie`. On CUDA there may be unused room at the ends."""

    child_starts: tuple[Tensor, ...]
    """Per level [nodes of the level's parents + 1] int32."""
    child_codes: tuple[Tensor, ...]
    """Per level [nodes] int32."""


class LegalityTables:
    """The device's copy of the catalog: its trie and its masks, of which what changed is copied when its version moves.

    All tensors stay where they are from batch to batch, for captured graphs; when one must move, `generation` changes.
    """

    node_masks: tuple[Tensor, ...]
    """Per level [masks, nodes] bool: row 0 the live nodes, each further row those that are tag-allowed too."""
    emptied_nodes: tuple[Tensor, ...]
    """Per level, int32: nodes that each request's exclusions emptied, sorted within the request. On CUDA a buffer whose
    used part the requests' starts tell."""

    def __init__(self, catalog: Catalog, device: torch.device, *, like: LegalityTables | None = None) -> None:
        """`like`: the tables that these are to replace; they get the same room, if the catalog fits into it."""
        self._catalog = catalog
        self.device = device
        self.num_nodes = tuple(len(codes) for codes in catalog.trie.node_codes)
        """Nodes that each level chooses from."""
        self._room = self.num_nodes if device.type == "cpu" else tuple(map(_with_headroom, self.num_nodes))
        if device.type == "cuda" and like is not None and all(map(ge, like._room, self.num_nodes)):
            self._room = like._room
        trie, room = catalog.trie, self._room
        parents = (1, *room[:-1])
        self.trie = TrieTensors(
            tuple(self._fitted(own, size + 1) for own, size in zip(trie.child_starts, parents, strict=True)),
            tuple(self._fitted(own, size) for own, size in zip(trie.node_codes, room, strict=True)),
        )
        self._no_nodes = (torch.empty(0, dtype=torch.int32),) * catalog.levels
        self._revision = -1
        self._mask_rows: dict[TagsKey | None, int] = {}
        self._allocate_masks(MAX_MASKS if device.type == "cuda" else 2)
        self._allocate_emptied(EMPTIED_NODES if device.type == "cuda" else 0)

    def prepare(self, keys: Sequence[TagsKey]) -> None:
        """Have the masks of these tag combinations, which the catalog keeps, and of no other."""
        wanted: list[TagsKey | None] = [None, *keys[-(MAX_MASKS - 1) :]]
        if len(wanted) > len(self.node_masks[0]):
            self._allocate_masks(len(wanted))
        self._mask_rows = {key: row for row, key in enumerate(wanted)}
        self._revision = self._catalog.revision
        for key, row in self._mask_rows.items():
            self._write_masks(row, self._catalog.filters.node_masks(key) or ())

    def replace(self, new: LegalityTables) -> None:
        """Be what `new` is, made of another catalog; it is not to be used any more. On CUDA its content moves to where
        the old was, if there is room, for the work that follows on this stream."""
        self._catalog, self._revision, self._mask_rows = new._catalog, new._revision, new._mask_rows
        self.num_nodes = new.num_nodes
        own = (*self.trie.child_starts, *self.trie.child_codes, *self.node_masks)
        others = (*new.trie.child_starts, *new.trie.child_codes, *new.node_masks)
        if self.device.type == "cuda":
            for tensor in others:
                tensor.record_stream(torch.cuda.current_stream())  # it was made on another one
            if self._room == new._room and len(new.node_masks[0]) <= len(self.node_masks[0]):
                for old, tensor in zip(own, others, strict=True):
                    old[: len(tensor)].copy_(tensor)
                return
            self._settle()
        self.trie, self.node_masks, self._room = new.trie, new.node_masks, new._room
        self.generation = next(_generations)

    def bring(self, filters: Sequence[ResolvedFilter]) -> None:
        """Have the masks and emptied nodes of a batch on the device, for the work that follows on this stream."""
        if self._revision != self._catalog.revision:
            self._follow()
        new = {f.tags_key: f.node_masks for f in filters if f.tags_key not in self._mask_rows}
        if new:
            self._bring_masks(new, filters)
        self._write_emptied(filters)

    def _bring_masks(
        self, new: dict[TagsKey | None, tuple[NDArray[np.bool_], ...] | None], filters: Sequence[ResolvedFilter]
    ) -> None:
        """Have these masks, which the batch needs, on the device."""
        if len(self._mask_rows) + len(new) > max(MAX_MASKS, len(self.node_masks[0])):
            self._start_over()
            new = {f.tags_key: f.node_masks for f in filters if f.tags_key is not None}
        needed = len(self._mask_rows) + len(new)
        if needed > len(self.node_masks[0]):
            self._settle()
            self._allocate_masks(2 * needed)
        for key, masks in new.items():
            if masks is not None:
                self._mask_rows[key] = len(self._mask_rows)
                self._write_masks(self._mask_rows[key], masks)

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
            if self.device.type == "cpu":
                self.emptied_nodes = self._no_nodes
            return
        nodes = [np.concatenate([f.emptied[level] for f in filters]) for level in range(self._catalog.levels)]
        if self.device.type == "cpu":
            self.emptied_nodes = tuple(map(torch.from_numpy, nodes))
            return
        most = max(map(len, nodes))
        if most > len(self.emptied_nodes[0]):
            self._settle()
            self._allocate_emptied(2 * most)
        if most:
            for buffer, own in zip(self.emptied_nodes, nodes, strict=True):
                buffer[: len(own)].copy_(torch.from_numpy(own), non_blocking=True)

    def _follow(self) -> None:
        """Take over what came and went since: one scatter a level, for all masks together."""
        catalog = self._catalog
        leaves = None if self._revision < 0 else catalog.leaves_flipped_since(self._revision)
        masks = [catalog.filters.node_masks(key) for key in self._mask_rows]
        self._revision = catalog.revision
        if leaves is None or not all(masks):  # a mask that the catalog keeps no longer can't be followed
            self._start_over()
            return
        rows = self._tensor(np.array(list(self._mask_rows.values()), np.int64))[:, None]
        leaves = np.unique(leaves)
        for level, table in enumerate(self.node_masks):
            nodes = _distinct(catalog.trie.node_of(level + 1, leaves))
            values = np.stack([mask[level][nodes] for mask in masks if mask is not None])
            table[rows, self._tensor(nodes.astype(np.int64))] = self._tensor(values)

    def _start_over(self) -> None:
        self._mask_rows = {None: 0}
        self._write_masks(0, [counts > 0 for counts in self._catalog.live_counts[1:]])

    def _write_masks(self, row: int, masks: Sequence[NDArray[np.bool_]]) -> None:
        for table, mask in zip(self.node_masks, masks, strict=True):
            table[row, : len(mask)].copy_(torch.from_numpy(mask), non_blocking=True)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _fitted(self, own: Int32Array, size: int) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(own)
        tensor = torch.zeros(size, dtype=torch.int32, device=self.device)
        tensor[: len(own)] = self._tensor(own)
        return tensor

    def _allocate_masks(self, rows: int) -> None:
        old = self.node_masks if self._mask_rows else ()
        self.node_masks = tuple(torch.zeros(rows, size, dtype=torch.bool, device=self.device) for size in self._room)
        for table, before in zip(self.node_masks, old, strict=False):
            table[: len(before)] = before
        self.generation = next(_generations)

    def _allocate_emptied(self, size: int) -> None:
        self.emptied_nodes = tuple(
            torch.zeros(size, dtype=torch.int32, device=self.device) for _ in range(self._catalog.levels)
        )
        self.generation = next(_generations)

    def _settle(self) -> None:
        """Wait for all work that may still read the tensors about to be replaced. They seldom are."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _with_headroom(nodes: int) -> int:
    """Room for more nodes; a multiple of 16, since kernels load 16 bytes of a mask at once."""
    return -(-(nodes + nodes // 8 + HEADROOM) // 16) * 16


def _distinct(ordered: Int32Array) -> Int32Array:
    """Of ascending numbers, each once."""
    distinct: Int32Array = ordered[np.diff(ordered, prepend=-1) != 0]
    return distinct
