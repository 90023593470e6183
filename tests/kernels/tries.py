"""Random tries with masks, and what their masks must be, the obvious way: item by item."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from xgr_kernels import NodeMasks
from xgr_stream.catalog import Trie

Sid = tuple[int, ...]


@dataclass
class Case:
    trie: Trie
    sids: dict[int, Sid]
    """Of the rows that have a place."""
    tree: NodeMasks

    @property
    def levels(self) -> int:
        return self.trie.levels

    def legal(self, mask: int) -> set[int]:
        """Rows that are live and allowed."""
        both = (self.tree.live & self.tree.allowed[mask]).cpu()
        return {row for row in self.sids if both[row]}

    def nodes(self, rows: set[int], level: int) -> set[int]:
        """The nodes of a level that have one of these rows below them."""
        prefixes = sorted({sid[: level + 1] for sid in self.sids.values()})
        return {prefixes.index(self.sids[row][: level + 1]) for row in rows}

    def fill(self) -> None:
        """Make all masks what they must be."""
        for mask in range(len(self.tree.allowed)):
            for level, own in enumerate(self.tree.masks):
                own[mask] = False
                own[mask, sorted(self.nodes(self.legal(mask), level))] = True

    def packed(self, rows: list[int], *values: list[int]) -> torch.Tensor:
        """Rows, these values, and the nodes above them."""
        listed = np.array(rows, np.int32)
        paths = self.trie.paths(self.trie.leaves[listed])
        more = np.array(values, np.int32).reshape(len(values), len(rows))
        return torch.from_numpy(np.concatenate((listed[None], more, paths))).to(self.tree.live.device)

    def keys(self, rows: list[int]) -> torch.Tensor:
        """`leaf << 32 | row` of these."""
        listed = np.array(rows, np.int64)
        return torch.from_numpy(self.trie.leaves[listed].astype(np.int64) << 32 | listed).to(self.tree.live.device)

    @property
    def num_nodes(self) -> torch.Tensor:
        """Per level."""
        nodes = [self.trie.num_nodes(depth) for depth in range(1, self.levels + 1)]
        return torch.tensor(nodes, dtype=torch.int32, device=self.tree.live.device)

    def in_order(self, rows: set[int]) -> list[int]:
        return sorted(rows, key=lambda row: (self.sids[row], row))


def random_case(rng: random.Random, device: str, *, items: int = 60, room: int = 3) -> Case:
    """`room`: unused nodes at the ends of the masks, and of where children and items begin."""
    codes = [rng.choice([1, 2, 3, 20]) for _ in range(rng.randint(1, 4))]
    num_rows = rng.randint(1, items)
    placed = rng.sample(range(num_rows), rng.randint(1, num_rows))
    sids = {row: tuple(rng.randrange(most) for most in codes) for row in placed}
    order = np.array(sorted(placed, key=lambda row: (sids[row], rng.random())), np.int32)
    table = np.full((num_rows, len(codes)), -1, np.int32)
    table[placed] = [sids[row] for row in placed]
    trie = Trie.from_sids(table, tuple(codes), order)
    masks = rng.randint(1, 4)

    def bits(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=device) < rng.choice([0.2, 0.6, 1.0])

    def behind(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.append(array, np.zeros(room, np.int32))).to(device)

    tree = NodeMasks(
        live=bits(num_rows),
        allowed=torch.stack([bits(num_rows) for _ in range(masks)]),
        items=behind(trie.items),
        item_starts=behind(trie.item_starts),
        child_starts=tuple(map(behind, trie.child_starts)),
        masks=tuple(
            torch.zeros(masks, trie.num_nodes(depth) + room, dtype=torch.bool, device=device)
            for depth in range(1, trie.levels + 1)
        ),
    )
    tree.check()
    case = Case(trie, sids, tree)
    case.fill()
    return case
