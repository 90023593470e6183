"""The work list of a paged attention: computed on the device once per forward, shared by all of its layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an attention kernel cuts its work: fixed by the shapes, so that a captured graph can hold it."""

    block_m: int
    """Rows of a tile; a row is one query head of one beam or token."""
    block_n: int
    """Keys of a tile."""
    block_d: int
    """Head size, rounded up to a power of two."""
    num_warps: int
    num_stages: int
    slots: int
    """Programs that run at the same time on a whole card."""
    most_splits: int
    """Parts that the longest context may be cut into."""
    descriptors: bool
    """Keys and values come by the copy engine: each tile lies in one page and needs no padding."""
    pipelined: bool = False
    """By paged_hopper.cu: Hopper, 16 bits."""


@dataclass(slots=True)
class Plan:
    """What each program does, longest first. Valid for every layer of one forward, on one stream: layers overwrite
    each other's partial results. The lengths that it was computed from are data; a graph may replay it with others."""

    tiling: Tiling
    items: Tensor
    """[most items, 8], int32: first row, end row, tile, request (-1: nothing to do), first key, end key, the number
    of parts that the tile's context is cut into, and the distance between their items."""
    merges: Tensor
    """[1 + most tiles], int32: how many entries follow, each the item of a tile's first part, or -1."""
    partial: Tensor
    """[most items, kv_heads, block_m, dim] in the output's dtype: attention over a part, normalised."""
    log_totals: Tensor
    """[most items, kv_heads, block_m], float32: base-2 logarithms of the parts' softmax totals."""
    settled: bool = False
    """Whether a kernel that waited for the plan has been launched: those after it may read it before they wait."""
