"""gate_up_silu in Triton: a tile of gate and the same tile of up in one program, operands by the copy engine."""

from __future__ import annotations

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
    out, x, weight, n, inter, hidden,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
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
    product = gate / (1.0 + tl.exp(-gate)) * up
    i, j = row + tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + i.to(tl.int64) * inter + j, product.to(out.dtype.element_ty), mask=(i < n) & (j < inter))


def gate_up_silu(x: Tensor, weight: Tensor, tiles: Tiles | None = None) -> Tensor:
    n, hidden = x.shape
    inter = len(weight) // 2
    tiles = tiles or _tiles(n, inter, hidden, x.element_size())
    aligned = 16 // x.element_size()  # the copy engine takes rows that begin on 16 bytes
    if hidden % aligned:
        padding = (0, aligned - hidden % aligned)
        x, weight = torch.nn.functional.pad(x, padding), torch.nn.functional.pad(weight, padding)
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty(n, inter, dtype=x.dtype, device=x.device)
    if n:
        gate_up_silu_kernel[(triton.cdiv(n, tiles.rows) * triton.cdiv(inter, tiles.columns),)](
            out, TensorDescriptor.from_tensor(x, [tiles.rows, tiles.depth]),
            TensorDescriptor.from_tensor(weight, [tiles.columns, tiles.depth]), n, inter, x.shape[1],
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out


def _tiles(n: int, inter: int, hidden: int, element_size: int) -> Tiles:
    if element_size == 4 or n < 128:  # float32 is for exactness, not speed
        return Tiles(rows=32, columns=32, depth=32, warps=4, stages=2)
    return Tiles()
