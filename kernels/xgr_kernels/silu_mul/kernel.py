"""silu_mul in Triton: a few programs a row, or one where the row is quantised by its largest."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.dependent_launch import dependent_launch


@triton.jit
def silu_mul_kernel(
    out, scales, gate_up, hidden, row_scale, column_scale, columns, hidden_size, stride, hidden_stride, eps,
    BLOCK: tl.constexpr, HIDDEN_BLOCK: tl.constexpr, ROW_SCALE: tl.constexpr, COLUMN_SCALE: tl.constexpr,
    FP8: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < columns
    if COLUMN_SCALE:  # no kernel writes it: before the wait
        gate_by = tl.load(column_scale + i, mask=inside, other=0.0)
        up_by = tl.load(column_scale + columns + i, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    gate = tl.load(gate_up + row * stride + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + columns + i, mask=inside, other=0.0).to(tl.float32)
    if COLUMN_SCALE:
        gate *= gate_by
        up *= up_by
    factor = 1.0
    if ROW_SCALE:
        factor *= tl.load(row_scale + row)
    if HIDDEN_BLOCK:
        j = tl.arange(0, HIDDEN_BLOCK)
        state = tl.load(hidden + row * hidden_stride + j, mask=j < hidden_size, other=0.0).to(tl.float32)
        factor *= tl.rsqrt(tl.sum(state * state, 0) / hidden_size + eps)
    gate *= factor
    product = gate / (1.0 + tl.exp(-gate)) * (up * factor)
    if FP8:
        scale = tl.maximum(tl.max(tl.abs(product), 0), 1e-12) / 448.0
        tl.store(scales + row, scale)
        product = tl.minimum(tl.maximum(product / scale, -448.0), 448.0)
    tl.store(out + row * columns + i, product.to(out.dtype.element_ty), mask=inside)


def silu_mul(
    gate_up: Tensor,
    hidden: Tensor | None = None,
    eps: float = 1e-6,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    fp8: bool = False,
) -> tuple[Tensor, Tensor | None]:
    n, columns = len(gate_up), gate_up.shape[1] // 2
    gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    hidden_size = 0
    if hidden is not None:
        hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
        hidden_size = hidden.shape[1]
    out = torch.empty(n, columns, dtype=torch.float8_e4m3fn if fp8 else gate_up.dtype, device=gate_up.device)
    scales = torch.empty(n, 1, dtype=torch.float32, device=gate_up.device) if fp8 else None
    if n:
        padded = triton.next_power_of_2(columns)
        block = padded if fp8 else min(2048, padded)
        pdl = dependent_launch(gate_up)
        silu_mul_kernel[(n, triton.cdiv(columns, block))](
            out, scales, gate_up, hidden, row_scale, column_scale, columns, hidden_size, gate_up.stride(0),
            0 if hidden is None else hidden.stride(0), eps,
            BLOCK=block, HIDDEN_BLOCK=triton.next_power_of_2(hidden_size) if hidden_size else 0,
            ROW_SCALE=row_scale is not None, COLUMN_SCALE=column_scale is not None, FP8=fp8, PDL=pdl, launch_pdl=pdl,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return out, scales
