"""gate_up_silu in Triton: programs that stay, each with one tile of gate and up behind the other, operands by the copy
engine."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Tiles(NamedTuple):
    """How the product is cut: rows, columns (of each half) and depth of a tile, and what runs it."""

    rows: int = 128
    columns: int = 128
    depth: int = 64
    group: int = 16
    warps: int = 8
    stages: int = 4


@triton.jit
def gate_up_silu_kernel(
    out, x, weight, row_scale, column_scale, n, inter, hidden,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    PRECISION: tl.constexpr, ROW_SCALE: tl.constexpr, COLUMN_SCALE: tl.constexpr,
):  # fmt: skip
    row_tiles, column_tiles = tl.cdiv(n, ROWS), tl.cdiv(inter, COLUMNS)
    # As one loop of all tiles' steps: the next tile's operands are on their way while one is finished.
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, PROGRAMS, flatten=True):
        # Tiles that are computed at the same time share GROUP row tiles, so that their operands stay in L2.
        first = tile // (GROUP * column_tiles) * GROUP
        height = tl.minimum(row_tiles - first, GROUP)
        row = (first + tile % (GROUP * column_tiles) % height) * ROWS
        column = tile % (GROUP * column_tiles) // height * COLUMNS
        # Gate and up side by side are one operand, as wide as the matrix units take.
        both = tl.zeros([ROWS, 2 * COLUMNS], tl.float32)
        for k in range(0, hidden, DEPTH):
            halves = tl.reshape(weight.load([0, column, k]), [2 * COLUMNS, DEPTH])
            both = tl.dot(x.load([row, k]), halves.T, both, input_precision=PRECISION)
        gate, up = tl.split(tl.permute(tl.reshape(both, [ROWS, 2, COLUMNS]), (0, 2, 1)))
        if ROW_SCALE:
            i = row + tl.arange(0, ROWS)
            by_row = tl.load(row_scale + i, mask=i < n, other=0.0)[:, None]
            gate *= by_row
            up *= by_row
        if COLUMN_SCALE:
            j = column + tl.arange(0, COLUMNS)
            gate *= tl.load(column_scale + j, mask=j < inter, other=0.0)[None, :]
            up *= tl.load(column_scale + inter + j, mask=j < inter, other=0.0)[None, :]
        product = gate / (1.0 + tl.exp(-gate)) * up
        out.store([row, column], product.to(out.dtype))


def gate_up_silu(
    x: Tensor, weight: Tensor, row_scale: Tensor | None, column_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    n, inter = len(x), len(weight) // 2
    tiles = _tiles(n, x.element_size())
    x, weight = _aligned(x), _aligned(weight)
    out = torch.empty(n, -(-inter * dtype.itemsize // 16) * 16 // dtype.itemsize, dtype=dtype, device=x.device)
    out = out[:, :inter]
    if not x.shape[1]:
        return out.zero_()
    if n and inter:
        programs = min(_programs(x.device), triton.cdiv(n, tiles.rows) * triton.cdiv(inter, tiles.columns))
        gate_up_silu_kernel[(programs,)](
            TensorDescriptor.from_tensor(out, [tiles.rows, tiles.columns]),
            TensorDescriptor.from_tensor(x, [tiles.rows, tiles.depth]),
            TensorDescriptor.from_tensor(weight.view(2, inter, -1), [2, tiles.columns, tiles.depth]),
            row_scale, column_scale, n, inter, x.shape[1],
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group, PROGRAMS=programs,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            ROW_SCALE=row_scale is not None, COLUMN_SCALE=column_scale is not None,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out


@functools.cache
def _programs(device: torch.device) -> int:
    """One for each multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def _aligned(factor: Tensor) -> Tensor:
    """With rows that begin on 16 bytes, as the copy engine takes them; if they do not, a copy with zeros behind."""
    rows, hidden = factor.shape
    # Of a single row torch does not look at the stride, and a view may begin anywhere.
    places = factor.data_ptr(), factor.stride(0) * factor.element_size()
    if factor.is_contiguous() and not any(place % 16 for place in places):
        return factor
    elements = 16 // factor.element_size()
    copy = torch.zeros(rows, -(-hidden // elements) * elements, dtype=factor.dtype, device=factor.device)
    copy[:, :hidden] = factor
    return copy


def _tiles(n: int, element_size: int) -> Tiles:
    if element_size == 4 or n < 128:  # float32 is for exactness, not speed
        return Tiles(rows=32, columns=32, depth=32, warps=4, stages=2)
    return Tiles(depth=128, group=8, stages=3) if element_size == 1 else Tiles()
