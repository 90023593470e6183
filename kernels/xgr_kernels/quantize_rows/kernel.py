"""quantize_rows in Triton: one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.dependent_launch import dependent_launch


@triton.jit
def quantize_rows_kernel(out, scales, x, columns, stride, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < columns
    values = tl.load(x + row * stride + i, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 0), 1e-12) / 448.0
    tl.store(scales + row, scale)
    values = tl.minimum(tl.maximum(values / scale, -448.0), 448.0)
    tl.store(out + row * columns + i, values.to(out.dtype.element_ty), mask=inside)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    n, columns = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(n, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(n, 1, dtype=torch.float32, device=x.device)
    if n:
        block, pdl = triton.next_power_of_2(columns), dependent_launch(x)
        quantize_rows_kernel[(n,)](
            out, scales, x, columns, x.stride(0), BLOCK=block, PDL=pdl, launch_pdl=pdl,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return out, scales
