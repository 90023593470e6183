"""rms_norm in Triton: one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.dependent_launch import dependent_launch


@triton.jit
def rms_norm_kernel(
    out, scales, summed, x, weight, residual, row_scale, column_scale, columns, x_stride, residual_stride, eps,
    BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, ROW_SCALE: tl.constexpr, COLUMN_SCALE: tl.constexpr,
    FP8: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < columns
    # No kernel writes these: before the wait.
    factor = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    if COLUMN_SCALE:
        by = tl.load(column_scale + i, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    values = tl.load(x + row * x_stride + i, mask=inside, other=0.0).to(tl.float32)
    if ROW_SCALE:
        values *= tl.load(row_scale + row)
    if COLUMN_SCALE:
        values *= by
    if RESIDUAL:
        values += tl.load(residual + row * residual_stride + i, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(summed.dtype.element_ty)
        tl.store(summed + row * columns + i, rounded, mask=inside)
        values = rounded.to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values, 0) / columns + eps) * factor
    if FP8:
        scale = tl.maximum(tl.max(tl.abs(values), 0), 1e-12) / 448.0
        tl.store(scales + row, scale)
        values = tl.minimum(tl.maximum(values / scale, -448.0), 448.0)
    tl.store(out + row * columns + i, values.to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    fp8: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    n, columns = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(n, columns, dtype=torch.float8_e4m3fn if fp8 else x.dtype, device=x.device)
    scales = torch.empty(n, 1, dtype=torch.float32, device=x.device) if fp8 else None
    summed = None
    if residual is not None:
        residual = residual if residual.stride(1) == 1 else residual.contiguous()
        summed = torch.empty(n, columns, dtype=x.dtype, device=x.device)
    if n:
        block, pdl = triton.next_power_of_2(columns), dependent_launch(x)
        rms_norm_kernel[(n,)](
            out, scales, summed, x, weight, residual, row_scale, column_scale, columns, x.stride(0),
            0 if residual is None else residual.stride(0), eps,
            BLOCK=block, RESIDUAL=residual is not None, ROW_SCALE=row_scale is not None,
            COLUMN_SCALE=column_scale is not None, FP8=fp8, PDL=pdl, launch_pdl=pdl,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return out, scales, summed
