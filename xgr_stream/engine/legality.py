"""Which trie nodes each request of a batch may use, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xgr_stream.catalog import Catalog, ResolvedFilter
from xgr_stream.engine.tables import to_device

MAX_MASKS = 16
"""Tag combinations kept on the device: 1.5 MB each at 1.5 million items."""


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


@dataclass(frozen=True, slots=True, eq=False)
class BatchLegality:
    """What `beam_select` needs to know about the requests' filters, per level where it is a tuple."""

    node_masks: tuple[Tensor, ...]
    """[masks, nodes] bool: row 0 the live nodes, each further row those that are tag-allowed too."""
    mask_index: Tensor
    """[requests] int32: the row that each request uses."""
    emptied_starts: tuple[Tensor, ...]
    """[requests + 1] int32."""
    emptied_nodes: tuple[Tensor, ...]
    """[emptied] int32: nodes that a request's exclusions emptied, sorted within the request."""


class LegalityTables:
    """The device's copy of the catalog: its trie, copied once, and its masks, copied again when its version moves."""

    def __init__(self, catalog: Catalog, device: torch.device) -> None:
        self._catalog = catalog
        self._device = device
        trie = catalog.trie
        self.trie = TrieTensors(
            tuple(to_device(starts, device) for starts in trie.child_starts),
            tuple(to_device(codes, device) for codes in trie.node_codes),
        )
        self._version = ""
        self._masks: tuple[Tensor, ...] = ()
        self._mask_rows: dict[object, int] = {}
        self._no_nodes = torch.empty(0, dtype=torch.int32, device=device)

    def batch(self, filters: Sequence[ResolvedFilter]) -> BatchLegality:
        """The tables for one batch; valid until the catalog changes."""
        self._refresh(filters)
        rows = np.array([self._mask_rows[f.tags_key] for f in filters], dtype=np.int32)
        emptied = [self._emptied(level, filters) for level in range(self._catalog.levels)]
        return BatchLegality(
            node_masks=self._masks,
            mask_index=to_device(rows, self._device),
            emptied_starts=tuple(starts for starts, _ in emptied),
            emptied_nodes=tuple(nodes for _, nodes in emptied),
        )

    def _emptied(self, level: int, filters: Sequence[ResolvedFilter]) -> tuple[Tensor, Tensor]:
        starts = np.zeros(len(filters) + 1, dtype=np.int32)
        np.cumsum([len(f.emptied[level]) for f in filters], out=starts[1:])
        if not starts[-1]:
            return to_device(starts, self._device), self._no_nodes
        nodes = np.concatenate([f.emptied[level] for f in filters])
        return to_device(starts, self._device), to_device(nodes, self._device)

    def _refresh(self, filters: Sequence[ResolvedFilter]) -> None:
        """Bring the masks that these filters use onto the device."""
        if self._version != self._catalog.version:
            self._version = self._catalog.version
            self._start_over()
        new = {f.tags_key: f.node_masks for f in filters if f.tags_key not in self._mask_rows}
        if len(self._mask_rows) + len(new) > MAX_MASKS:
            self._start_over()
            new = {f.tags_key: f.node_masks for f in filters if f.tags_key is not None}
        for key, node_masks in new.items():
            if node_masks is not None:
                self._mask_rows[key] = len(self._mask_rows)
                added = (torch.from_numpy(mask)[None].to(self._device) for mask in node_masks)
                self._masks = tuple(torch.cat(both) for both in zip(self._masks, added, strict=True))

    def _start_over(self) -> None:
        self._mask_rows = {None: 0}
        live = (counts[None] > 0 for counts in self._catalog.live_counts[1:])
        self._masks = tuple(to_device(mask, self._device) for mask in live)
