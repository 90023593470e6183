"""Which trie nodes each request of a batch may use, as tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels import NodeMasks, mask_flip
from xgr_kernels.mask_exclude import NO_NODE
from xgr_kernels.mask_flip import FEW_FLIPS
from xgr_stream.catalog import Catalog, ResolvedFilter, Trie
from xgr_stream.catalog.catalog import DELTA_ITEMS
from xgr_stream.catalog.delta import Delta
from xgr_stream.catalog.filters import TagsKey
from xgr_stream.catalog.forest import Forest
from xgr_stream.catalog.tags import BoolArray
from xgr_stream.engine.exclusions import Exclusions
from xgr_stream.engine.graphs import capturing
from xgr_stream.engine.item_tensors import ItemTensors
from xgr_stream.engine.staging import Int32Array
from xgr_stream.engine.uploads import Uploads
from xgr_stream.errors import CatalogError

MAX_MASKS = 16
"""Tag combinations kept, the live items among them, unless a batch needs more: 65 MB each at 20 million items."""
MORE_THAN_FEW = 16
"""Flips for which `mask_flip` is compiled once more than for few."""

STAGED_BYTES = 1 << 16
"""CUDA itself stages copies of so many from pageable memory, and waits for nothing: 4 µs less than pinning them."""

PAIRS = 2 * DELTA_ITEMS + 1
"""Nodes of a depth whose prefix is in the catalog and in its delta, and one place that is never used."""

_generations = count()


HEADROOM = 1 << 16
"""Nodes per level, items and rows that CUDA's arrays have room for beyond an eighth more: 0.3 MB each, and 64 KB a
mask. Within it a catalog grows where it is, and no graph is captured again."""


@dataclass(frozen=True, slots=True, eq=False)
class TrieTensors:
    """The catalog's forest on the device; see `xgr_stream.catalog.Trie`. There is unused room at the ends."""

    child_starts: tuple[Tensor, ...]
    """Per level [nodes of the level's parents + 1] int32. There always are two roots: without a delta the second has
    no children."""
    child_codes: tuple[Tensor, ...]
    """Per level [nodes] int32."""
    others: tuple[Tensor, ...]
    """Per level [2, PAIRS] int32: of the level's parents those whose prefix is in the catalog and in its delta,
    ascending, and the other one's node; see `xgr_kernels.legal_normalizer`."""


class LegalityTables:
    """The catalog where the search reads it: its trie, its delta's behind it, and masks of their nodes, made there of
    which items are live and which tags they have.

    What captured graphs read stays where it is from batch to batch; when it must move, `generation` changes. Work on
    the masks goes to the current stream, which is to be the decodes', but for what making these tables takes.
    """

    node_masks: tuple[Tensor, ...]
    """Per level [masks, nodes] bool: row 0 the live nodes, each further row those that are tag-allowed too."""
    exclusions: Exclusions
    """What the requests of a batch exclude besides."""

    _uploads: Uploads
    """Also of the tables that are made to replace these."""

    _allowed: Tensor
    """[masks, rows] bool: which items pass the tags of each mask."""

    def __init__(self, catalog: Catalog, device: torch.device, *, like: LegalityTables | None = None) -> None:
        """`like`: the tables that these are to replace; they get the same room, if the catalog fits into it."""
        self.device = device
        trie = catalog.trie
        own = tuple(len(codes) for codes in trie.node_codes)
        self.num_nodes: tuple[int, ...] = own
        """Nodes that each level chooses from."""
        sizes = (*own, len(trie.items), catalog.num_rows)
        self._room = tuple(_with_room(size, device) for size in sizes)
        """Of nodes per level, items and rows."""
        if device.type == "cuda" and like is not None:
            roomy = all(room >= size + DELTA_ITEMS for room, size in zip(like._room, sizes, strict=True))
            self._room = like._room if roomy else self._room
        self._uploads = Uploads(device) if like is None else like._uploads
        *nodes, items, rows = self._room
        tensor = self._uploads.tensor
        self.trie = TrieTensors(
            tuple(tensor(own, size + 1) for own, size in zip(trie.child_starts, (2, *nodes[:-1]), strict=True)),
            tuple(tensor(own, size) for own, size in zip(trie.node_codes, nodes, strict=True)),
            tuple(torch.empty(2, PAIRS, dtype=torch.int32, device=device) for _ in own),
        )
        self._catalog = catalog
        self._revision = catalog.revision
        self._delta: Delta | None = None
        """Of the catalog's, what lies here behind its own."""
        self._items = ItemTensors(catalog, self._uploads, leaves=nodes[-1], items=items, rows=rows)
        self._mask_rows: OrderedDict[TagsKey | None, int] = OrderedDict()
        """The row of each mask; the last used one last."""
        self._allocate_masks(MAX_MASKS if device.type == "cuda" else 2)
        self.exclusions = Exclusions(len(own), device) if like is None else like.exclusions
        few = FEW_FLIPS if device.type == "cuda" else 0
        self._few_flips = torch.zeros(2 + trie.levels, few, dtype=torch.int32, device=device)
        self._flip_graph: tuple[int, torch.cuda.CUDAGraph] | None = None
        """Of those, and the generation that it is of."""
        self._join()
        self._write_mask(None, 0)
        self._mask_rows[None] = 0
        if device.type == "cuda":
            self._compile()

    @property
    def generation(self) -> tuple[int, int]:
        return self._generation, self.exclusions.generation

    @property
    def kept(self) -> tuple[TagsKey, ...]:
        """The tag combinations that have a mask, the least recently used first."""
        return tuple(key for key in self._mask_rows if key is not None)

    @property
    def shared(self) -> tuple[Tensor, ...] | None:
        """`TrieTensors.others`; None: there is no delta. What is captured can't be told so."""
        return None if self._delta is None else self.trie.others

    @property
    def num_bytes(self) -> int:
        """On the device."""
        kept = (*self._of_catalog, self._items.tagged, self._few_flips)
        return sum(tensor.nbytes for tensor in kept) + self.exclusions.num_bytes

    @property
    def _of_catalog(self) -> tuple[Tensor, ...]:
        """What captured graphs read of the catalog."""
        trie, items = self.trie, self._items
        tables = (*trie.child_starts, *trie.child_codes, *trie.others, *self.node_masks, self._allowed)
        return (*tables, items.live, items.items, items.starts)

    def prepare(self, keys: Iterable[TagsKey]) -> None:
        """Have the masks of these tag combinations, of which tags may be no longer known."""
        known = dict.fromkeys(self._catalog.filters.key_of(*key) for key in keys)
        self._bring_masks([key for key in known if key is not None][-(MAX_MASKS - 1) :])

    def flip_graph(self) -> torch.cuda.CUDAGraph:
        """Of few flips, on CUDA: captured now, unless it was before."""
        if self._flip_graph is None or self._flip_graph[0] != self._generation:
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream(self.device)
            with capturing(graph, stream):
                mask_flip(self._masks, self._few_flips)
            self._flip_graph = self._generation, graph
        return self._flip_graph[1]

    def replace(self, new: LegalityTables) -> None:
        """Be what `new` is, made of another catalog; it is not to be used any more. On CUDA what graphs read moves to
        where the old was, if there is room, for the work that follows on this stream."""
        in_place = self.device.type == "cuda" and self._room == new._room and len(self._allowed) == len(new._allowed)
        if self.device.type == "cuda":
            # Made on another stream, or freed while this one may still read them.
            for tensor in (*new._of_catalog, new._items.tagged, self._items.tagged):
                tensor.record_stream(torch.cuda.current_stream())
        if in_place:
            for old, tensor in zip(self._of_catalog, new._of_catalog, strict=True):
                old.copy_(tensor)
            new._items.move_to(self._items)
        else:
            self._settle()
            self.trie, self.node_masks, self._allowed, self._room = new.trie, new.node_masks, new._allowed, new._room
            self._generation = next(_generations)
        self._catalog, self._revision, self._mask_rows = new._catalog, new._revision, new._mask_rows
        self._delta, self.num_nodes, self._items = new._delta, new.num_nodes, new._items
        self._connect()

    def bring(self, filters: Sequence[ResolvedFilter]) -> None:
        """Have the masks of a batch on the device, for the work that follows on this stream."""
        if self._delta is not self._catalog.delta:
            self._join()
        if self._revision != self._catalog.revision:
            self._follow()
        keys = dict.fromkeys([f.tags_key for f in filters if f.tags_key is not None])
        if keys:
            self._bring_masks(list(keys))

    def shapes(self, requests: int) -> dict[str, tuple[int, ...]]:
        """Of the host arrays that `write` fills for so many requests."""
        own = {"mask_index": (requests,), "num_nodes": (self._catalog.levels,)}
        return {**own, **self.exclusions.shapes(requests)}

    def write(self, filters: Sequence[ResolvedFilter], arrays: Mapping[str, Int32Array]) -> None:
        """Fill a batch's host arrays, which come zeroed: `mask_index` [requests], the mask that each request uses,
        `num_nodes` [levels], and those of `exclusions`. After `bring`. There may be more requests than filters: what is
        beyond them has none."""
        for i, f in enumerate(filters):
            arrays["mask_index"][i] = self._mask_rows[f.tags_key]
        arrays["num_nodes"][:] = self.num_nodes
        self.exclusions.write(filters, arrays)

    def exclude(self, inputs: Mapping[str, Tensor]) -> None:
        """Find the nodes that a batch's exclusions empty, from what `write` and `exclusions.send` brought: one kernel,
        which may be captured."""
        self.exclusions.find(self._masks, inputs)

    def check_integrity(self) -> None:
        """Raise `CatalogError` if a mask is not what counting the catalog's items gives."""
        self.bring([])
        catalog = self._catalog
        for key, row in self._mask_rows.items():
            legal = catalog.available if key is None else catalog.available & catalog.tags.mask(*key)
            for level, counts in enumerate(catalog.counts_below(legal)[1:]):
                found = self.node_masks[level][row, : len(counts)].cpu().numpy()
                wrong = np.flatnonzero(found != (counts > 0))
                if len(wrong):
                    node = int(wrong[0])
                    raise CatalogError(
                        f"node {node} of level {level} is {'' if found[node] else 'not '}legal in the mask of tags "
                        f"{key}, and {counts[node]} legal items are below it"
                    )

    def _bring_masks(self, keys: Sequence[TagsKey]) -> None:
        """Have these masks, in place of those that were used the longest ago."""
        rows = self._mask_rows
        rows.move_to_end(None)
        missing = []
        for key in keys:
            if key in rows:
                rows.move_to_end(key)
            else:
                missing.append(key)
        if not missing:
            return
        room = len(self._allowed)
        wanted = max(1 + len(keys), min(MAX_MASKS, len(rows) + len(missing)))
        if wanted > room:
            self._settle()
            self._allocate_masks(max(wanted, min(MAX_MASKS, 2 * room)))
        for key in missing:
            free = set(range(len(self._allowed))).difference(rows.values())
            row = min(free) if free else rows.popitem(last=False)[1]
            self._write_mask(key, row)  # without memory for it the row is nobody's
            rows[key] = row

    def _follow(self) -> None:
        """Take over what came and went since: one copy, and one kernel for all levels of all masks. What fails is done
        again."""
        catalog = self._catalog
        rows = catalog.rows_flipped_since(self._revision)
        if rows is None:
            self._items.live[: len(catalog.available)].copy_(torch.from_numpy(catalog.available))
            for key, row in self._mask_rows.items():
                self._write_mask(key, row)
        else:
            self._flip(rows)
        self._revision = catalog.revision

    def _flip(self, rows: Int32Array) -> None:
        if self.device.type == "cpu" or len(rows) > FEW_FLIPS:
            mask_flip(self._masks, self._tensor(self._flips(rows)))
            return
        # By a graph: its launch is 0.03 to 0.05 ms shorter. The last one comes again and again.
        flips = self._flips(rows.take(range(FEW_FLIPS), mode="clip"))
        self._few_flips.copy_(torch.from_numpy(flips), non_blocking=True)
        self.flip_graph().replay()

    def _flips(self, rows: Int32Array) -> Int32Array:
        """What `mask_flip` takes. [2 + levels, rows]"""
        catalog, trie = self._catalog, self._catalog.trie
        flips = np.empty((2 + trie.levels, len(rows)), np.int32)
        flips[0] = rows
        flips[1] = catalog.available.take(rows)
        flips[2:] = trie.paths(trie.leaves.take(rows))  # take: half the time of an index of few, and less of many
        return flips

    def _compile(self) -> None:
        """Have the kernel at hand, by work that changes nothing: a second that no batch is to wait for."""
        for rows in (FEW_FLIPS, MORE_THAN_FEW):
            mask_flip(self._masks, self._tensor(self._flips(self._catalog.trie.items[:rows])))

    def _write_mask(self, key: TagsKey | None, row: int) -> None:
        """Make a mask of what is live."""
        self._items.allow(key, self._allowed[row])
        if key is not None and self._delta is not None:
            first = self._catalog.num_rows
            own = self._tensor(self._delta.tags.mask(*key))
            self._allowed[row, first : first + len(own)].copy_(own)
        for table, nodes in zip(self.node_masks, self._items.nodes(self._masks, row), strict=True):
            table[row, : len(nodes)].copy_(nodes)

    def _join(self) -> None:
        """Write the catalog's delta, or none, behind its own: one copy, and a short one for each array."""
        catalog, forest, own = self._catalog, self._catalog.forest, self._catalog.trie
        behind: list[tuple[Tensor, int, NDArray[Any]]] = []
        if isinstance(forest, Forest) and catalog.delta is not None:
            for tensors, arrays in (
                (self.trie.child_starts, forest.child_starts),
                (self.trie.child_codes, forest.node_codes),
                ((self._items.items, self._items.starts), (forest.items, forest.item_starts)),
            ):
                behind += [(t, len(array.base), array.behind) for t, array in zip(tensors, arrays, strict=True)]
            behind.append((self._items.live, catalog.num_rows, catalog.delta.available))
            behind += self._masks_behind(catalog.delta)
        else:
            behind.append((self.trie.child_starts[0], 2, own.child_starts[0][-1:]))
        behind += [(tensor, 0, pairs) for tensor, pairs in zip(self.trie.others, _pairs(forest), strict=True)]
        sent = self._tensor(np.concatenate([array.ravel() for _, _, array in behind], dtype=np.int32))
        pieces = sent.split([array.size for _, _, array in behind])
        self._items.live[catalog.num_rows :].fill_(False)  # of the delta before
        for (tensor, first, array), piece in zip(behind, pieces, strict=True):
            into = tensor[: len(array)] if array.ndim == 2 else tensor
            into[..., first : first + array.shape[-1]].copy_(piece.view(array.shape))
        self._delta = catalog.delta
        self.num_nodes = tuple(forest.num_nodes(depth + 1) for depth in range(catalog.levels))
        self._connect()

    def _masks_behind(self, delta: Delta) -> list[tuple[Tensor, int, NDArray[Any]]]:
        """What the delta's items and nodes are to be in all masks, [masks, items or nodes], and where that is."""
        rows = self._mask_rows
        if not rows:
            return []
        masks_room = 1 + max(rows.values())
        allowed: BoolArray = np.full((masks_room, delta.num_items), True)
        for key, row in rows.items():
            if key is not None:
                allowed[row] = delta.tags.mask(*key)
        before = np.zeros((masks_room, delta.num_items + 1), np.int32)
        np.cumsum((allowed & delta.available)[:, delta.trie.items], axis=1, out=before[:, 1:])
        masks = [(self._allowed, self._catalog.num_rows, allowed)]
        for depth, table in enumerate(self.node_masks, start=1):
            legal = np.diff(before[:, delta.trie.item_bounds(depth)]) > 0
            masks.append((table, self._catalog.trie.num_nodes(depth), legal))
        return masks

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """On the device, for the work that follows on this stream; the host waits for nothing."""
        own = torch.from_numpy(array)
        if self.device.type == "cpu":
            return own
        if array.nbytes > STAGED_BYTES:
            own = own.pin_memory()
        return own.to(self.device, non_blocking=True)

    def _allocate_masks(self, rows: int) -> None:
        """Room for so many, with those that there are; all of it, or nothing where there is no memory."""
        old = (self._allowed, *self.node_masks) if self._mask_rows else ()
        sizes = (len(self._items.live), *self._room[: self._catalog.levels])
        allowed, *masks = (torch.zeros(rows, size, dtype=torch.bool, device=self.device) for size in sizes)
        for table, before in zip((allowed, *masks), old, strict=False):
            table[: len(before)] = before
        self._allowed, self.node_masks = allowed, tuple(masks)
        self._generation = next(_generations)
        self._connect()

    def _connect(self) -> None:
        """What the kernels take: all that is there, of items, leaves and nodes without the unused room."""
        items, parents = self._items, (2, *self.num_nodes[:-1])
        delta_items = 0 if self._delta is None else self._delta.num_items
        self._masks = NodeMasks(
            items.live,
            self._allowed,
            items.items[: self._catalog.num_items + delta_items],
            items.starts[: self.num_nodes[-1] + 1],
            tuple(own[: size + 1] for own, size in zip(self.trie.child_starts, parents, strict=True)),
            self.node_masks,
        )
        self._masks.check()

    def _settle(self) -> None:
        """Wait for all work that may still read the tensors about to be replaced. They seldom are."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _pairs(forest: Trie | Forest) -> list[Int32Array]:
    """What `TrieTensors.others` is to be."""
    tables = []
    for depth in range(len(forest.child_starts)):
        table = np.array([[NO_NODE], [-1]], np.int32).repeat(PAIRS, axis=1)
        if isinstance(forest, Forest):
            in_base = forest.in_base[depth]
            shared = np.flatnonzero(in_base >= 0)
            base, delta = in_base[shared], shared + forest.base.num_nodes(depth)
            table[:, : 2 * len(shared)] = np.concatenate((base, delta)), np.concatenate((delta, base))
        tables.append(table)
    return tables


def _with_room(size: int, device: torch.device) -> int:
    """Room for a delta's nodes or items and, on CUDA, for more of the catalog's; a multiple of 16 there, since kernels
    load 16 bytes of a mask at once."""
    if device.type == "cpu":
        return size + DELTA_ITEMS
    return -(-(size + size // 8 + HEADROOM) // 16) * 16
