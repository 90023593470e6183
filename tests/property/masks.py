"""What the search may use, read from the tables that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from xgr_stream.catalog import Catalog, ResolvedFilter
from xgr_stream.engine.legality import LegalityTables

Nodes = list[NDArray[np.bool_]]
"""Per level, which nodes are legal."""


def legal_nodes(tables: LegalityTables, filters: Sequence[ResolvedFilter]) -> list[Nodes]:
    """Of each request of a batch with these filters."""
    arrays = {name: np.zeros(shape, np.int32) for name, shape in tables.shapes(len(filters)).items()}
    tables.bring(filters)
    tables.write(filters, arrays)
    tables.exclusions.send(filters)
    tables.exclude({name: torch.from_numpy(array).to(tables.device) for name, array in arrays.items()})
    found: list[Nodes] = []
    for row, (first, last) in zip(arrays["mask_index"], pairwise(arrays["emptied_starts"].tolist()), strict=True):
        levels = []
        for mask, emptied, size in zip(
            tables.node_masks, tables.exclusions.emptied_nodes, tables.num_nodes, strict=True
        ):
            legal = mask[int(row), :size].cpu().numpy().copy()
            nodes = emptied[first:last].cpu().numpy()
            assert (np.diff(nodes) > 0).all()
            nodes = nodes[nodes < size]
            assert legal[nodes].all()  # no more is emptied than was legal
            legal[nodes] = False
            levels.append(legal)
        found.append(levels)
    return found


def counted(catalog: Catalog, resolved: ResolvedFilter) -> Nodes:
    """The same by counting the items that the filter leaves below every node."""
    left = np.zeros(len(catalog.available), np.bool_)
    placed = np.concatenate(catalog.forest.in_order)
    left[placed] = resolved.allows(placed)
    return [counts > 0 for counts in catalog.counts_below(left)[1:]]


def assert_same_nodes(found: Sequence[Nodes], expected: Sequence[Nodes]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.tolist() == other.tolist()
