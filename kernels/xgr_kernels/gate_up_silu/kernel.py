"""gate_up_silu in Triton: a tile of gate and the same tile of up in one program, operands by the copy engine."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Torch pads numbers of any of these, and not FP8."""


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
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
    ROW_SCALE: tl.constexpr, COLUMN_SCALE: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time share GROUP row tiles, so that their operands stay in L2.
    row_tiles, column_tiles = tl.cdiv(n, ROWS), tl.cdiv(inter, COLUMNS)
    program = tl.program_id(0)
    first = program // (GROUP * column_tiles) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    row = (first + program % (GROUP * column_tiles) % height) * ROWS
    column = program % (GROUP * column_tiles) // height * COLUMNS
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(0, hidden, DEPTH):
        states = x.load([row, k])
        gate = tl.dot(states, weight.load([column, k]).T, gate, input_precision=PRECISION)
        up = tl.dot(states, weight.load([inter + column, k]).T, up, input_precision=PRECISION)
    i, j = row + tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
    if ROW_SCALE:
        by = tl.load(row_scale + i, mask=i < n, other=0.0)
        gate *= by
        up *= by
    if COLUMN_SCALE:
        gate *= tl.load(column_scale + j, mask=j < inter, other=0.0)
        up *= tl.load(column_scale + inter + j, mask=j < inter, other=0.0)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + i.to(tl.int64) * inter + j, product.to(out.dtype.element_ty), mask=(i < n) & (j < inter))


def gate_up_silu(
    x: Tensor, weight: Tensor, row_scale: Tensor | None, column_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    n, inter = len(x), len(weight) // 2
    tiles = _tiles(n, x.element_size())
    x, weight = _aligned(x), _aligned(weight)
    out = torch.empty(n, inter, dtype=dtype, device=x.device)
    if n:
        gate_up_silu_kernel[(triton.cdiv(n, tiles.rows) * triton.cdiv(inter, tiles.columns),)](
            out, TensorDescriptor.from_tensor(x, [tiles.rows, tiles.depth]),
            TensorDescriptor.from_tensor(weight, [tiles.columns, tiles.depth]), row_scale, column_scale, n, inter,
            x.shape[1], ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            ROW_SCALE=row_scale is not None, COLUMN_SCALE=column_scale is not None,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out


def _aligned(factor: Tensor) -> Tensor:
    """With rows that begin on 16 bytes, as the copy engine takes them."""
    beyond = factor.shape[1] * factor.element_size() % 16
    if beyond:
        padding = (0, (16 - beyond) // factor.element_size())
        factor = torch.nn.functional.pad(factor.view(_SAME_SIZE[factor.element_size()]), padding).view(factor.dtype)
    return factor.contiguous()


def _tiles(n: int, element_size: int) -> Tiles:
    if element_size == 4 or n < 128:  # float32 is for exactness, not speed
        return Tiles(rows=32, columns=32, depth=32, warps=4, stages=2)
    return Tiles(depth=128, stages=3) if element_size == 1 else Tiles()
