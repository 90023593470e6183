"""What the attention kernels share: tiles over ragged groups, online softmax over pages, the merge of splits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = 1.4426950408889634
MULTIPROCESSORS = 132
"""Of an H100 or H200; it decides only into how many splits a small batch goes."""


@triton.jit
def locate_tile(starts, groups, tile, HEADS: tl.constexpr, BLOCK_M: tl.constexpr, GROUPS: tl.constexpr):
    """Tiles of BLOCK_M rows (HEADS for each element) are numbered group by group, each group's last one partly empty.

    starts: [groups + 1]. Returns the tile's group, its number inside the group, and whether there is such a tile.
    """
    group = tl.arange(0, GROUPS)
    first = tl.load(starts + group, mask=group < groups, other=0)
    last = tl.load(starts + group + 1, mask=group < groups, other=0)
    tiles = tl.cdiv((last - first) * HEADS, BLOCK_M)
    before = tl.cumsum(tiles, 0) - tiles
    mine = (before <= tile) & (tile < before + tiles)
    owner = tl.sum(tl.where(mine, group, 0), 0)
    return owner, tile - tl.sum(tl.where(mine, before, 0), 0), tl.sum(mine.to(tl.int32), 0) > 0


@triton.jit
def _load_tile(
    pages, table, first, stop, kv_head, kv_heads,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Keys or values [BLOCK_N, BLOCK_D] of the tokens from `first` on; zero from `stop` on unless WHOLE."""
    n = first + tl.arange(0, BLOCK_N)
    if DESCRIPTORS:
        page = tl.load(table + first // PAGE_SIZE)
        tile = pages.load([(page * kv_heads + kv_head) * PAGE_SIZE + first % PAGE_SIZE, 0])
        if not WHOLE:  # unwritten memory may hold NaN, and 0 · NaN is NaN
            tile = tl.where((n < stop)[:, None], tile, 0.0)
    else:
        d = tl.arange(0, BLOCK_D)
        page = tl.load(table + n // PAGE_SIZE, mask=n < stop, other=0).to(tl.int64)
        row = (page * kv_heads + kv_head) * PAGE_SIZE + n % PAGE_SIZE
        inside = (n < stop)[:, None] & (d < DIM)[None, :]
        tile = tl.load(pages + row[:, None] * DIM + d[None, :], mask=inside, other=0.0)
    return tile


@triton.jit
def _absorb(q, keys, values, peak, total, acc, qk_scale, hidden, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One online softmax step; `hidden` says which scores do not count."""
    scores = tl.dot(q, keys.T, input_precision=PRECISION) * qk_scale
    if MASKED:
        scores = tl.where(hidden, float("-inf"), scores)
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return new_peak, total, acc


@triton.jit
def attend_pages(
    q, peak, total, acc, k_pages, v_pages, table, first, whole, stop, limits, kv_head, kv_heads, qk_scale,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to the tokens first..stop of one sequence's pages, row m to those below limits[m].

    Tokens below `whole` (a multiple of BLOCK_N away from `first`) are seen by every row: their tiles take no mask.
    peak, total, acc: the online softmax's state, in base 2; peak finite.
    """
    for n in range(first, whole, BLOCK_N):
        keys = _load_tile(
            k_pages, table, n, whole, kv_head, kv_heads, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DESCRIPTORS, True
        )
        values = _load_tile(
            v_pages, table, n, whole, kv_head, kv_heads, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DESCRIPTORS, True
        )
        peak, total, acc = _absorb(q, keys, values, peak, total, acc, qk_scale, None, False, PRECISION)
    for n in range(whole, stop, BLOCK_N):
        keys = _load_tile(
            k_pages, table, n, stop, kv_head, kv_heads, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DESCRIPTORS, False
        )
        values = _load_tile(
            v_pages, table, n, stop, kv_head, kv_heads, PAGE_SIZE, DIM, BLOCK_N, BLOCK_D, DESCRIPTORS, False
        )
        at = n + tl.arange(0, BLOCK_N)
        hidden = at[None, :] >= tl.minimum(limits, stop)[:, None]
        peak, total, acc = _absorb(q, keys, values, peak, total, acc, qk_scale, hidden, True, PRECISION)
    return peak, total, acc


@triton.jit
def _merge_kernel(
    out, partial, log_totals, rows, DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (d < DIM)[None, :]
    peak = tl.full([BLOCK], -1e30, tl.float32)
    for split in tl.static_range(SPLITS):
        peak = tl.maximum(peak, tl.load(log_totals + split * rows + row, mask=row < rows, other=float("-inf")))
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for split in tl.static_range(SPLITS):
        at = split * rows + row
        weight = tl.exp2(tl.load(log_totals + at, mask=row < rows, other=float("-inf")) - peak)
        part = tl.load(partial + at[:, None].to(tl.int64) * DIM + d[None, :], mask=inside, other=0.0)
        total += weight
        acc += weight[:, None] * part.to(tl.float32)
    acc = acc / total[:, None]
    tl.store(out + row[:, None].to(tl.int64) * DIM + d[None, :], acc.to(out.dtype.element_ty), mask=inside)


def merge_splits(partial: Tensor, log_totals: Tensor) -> Tensor:
    """Merge attention over parts of the context: partial [splits, tokens, heads, dim], each normalised, and the
    base-2 logarithms of their softmax totals [splits, tokens, heads]. Returns [tokens, heads, dim]."""
    splits, tokens, heads, dim = partial.shape
    out = torch.empty(tokens, heads, dim, dtype=partial.dtype, device=partial.device)
    rows = tokens * heads
    block = 8
    _merge_kernel[(triton.cdiv(rows, block),)](
        out, partial, log_totals, rows, dim, splits, block, triton.next_power_of_2(dim), num_warps=4
    )
    return out


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an attention kernel cuts its work."""

    block_m: int
    block_n: int
    block_d: int
    splits: int
    num_warps: int
    num_stages: int
    descriptors: bool

    def operand(self, pages: Tensor) -> Tensor | TensorDescriptor:
        """Pages [pages, kv_heads, page_size, dim] as the kernel takes them."""
        if not self.descriptors:
            return pages
        return TensorDescriptor.from_tensor(pages.view(-1, pages.shape[3]), [self.block_n, self.block_d])


def tile_width(pages: Tensor, limit: int = 64) -> tuple[int, bool]:
    """Keys to a tile, and whether each lies within one page so that the copy engine can fetch it."""
    page_size, dim = pages.shape[2:]
    block_d = triton.next_power_of_2(dim)
    fits = max(16, min(limit, 64 * 256 // (block_d * pages.element_size())))  # at most 16 KiB a tile
    descriptors = dim == block_d and dim >= 16 and page_size >= 16
    return (min(fits, page_size) if descriptors else min(fits, 32)), descriptors
