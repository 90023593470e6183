"""beam_descend in Triton: one program a beam."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.dependent_launch import dependent_launch


@triton.jit
def beam_descend_kernel(
    out, positions, hidden, parents, nodes, child_codes, token_ids, embedding, row_starts, prefix_lengths, ancestors,
    requests, columns, stride, ancestors_stride, step,
    MAX_STEPS: tl.constexpr, STEPS_BLOCK: tl.constexpr, REQUESTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    request = tl.arange(0, REQUESTS)
    ends = tl.load(row_starts + request + 1, mask=request < requests, other=0x7FFFFFFF)
    owner = tl.sum((ends <= row).to(tl.int32), 0)
    real = owner < requests
    parent = tl.load(parents + row).to(tl.int64)
    node = tl.where(real, tl.maximum(tl.load(nodes + row), 0), 0)
    token = tl.load(token_ids + tl.load(child_codes + node)).to(tl.int64)
    i = tl.arange(0, BLOCK)
    value = tl.load(embedding + token * stride + i, mask=i < columns)
    tl.store(hidden + row.to(tl.int64) * columns + i, value, mask=i < columns)
    length = tl.load(prefix_lengths + owner, mask=real, other=0).to(tl.int64)
    tl.store(positions + row, tl.where(real, length + step, 0))
    s = tl.arange(0, STEPS_BLOCK)
    before = tl.load(ancestors + parent * ancestors_stride + s, mask=s < step, other=0)
    tl.store(out + row * MAX_STEPS + s, tl.where(s == step, row, before), mask=s < MAX_STEPS)


def beam_descend(
    parents: Tensor,
    nodes: Tensor,
    *,
    child_codes: Tensor,
    token_ids: Tensor,
    embedding: Tensor,
    row_starts: Tensor,
    prefix_lengths: Tensor,
    step: int,
    ancestors: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, max_steps = len(parents), embedding.shape[1], ancestors.shape[1]
    device, requests = embedding.device, len(prefix_lengths)
    ancestors = ancestors if ancestors.stride(1) == 1 else ancestors.contiguous()
    embedding = embedding if embedding.stride(1) == 1 else embedding.contiguous()
    out = torch.empty(rows, max_steps, dtype=torch.int32, device=device)
    positions = torch.empty(rows, dtype=torch.int64, device=device)
    hidden = torch.empty(rows, columns, dtype=embedding.dtype, device=device)
    if rows:
        block, pdl = triton.next_power_of_2(columns), dependent_launch(embedding)
        beam_descend_kernel[(rows,)](
            out, positions, hidden, parents, nodes, child_codes, token_ids, embedding, row_starts, prefix_lengths,
            ancestors, requests, columns, embedding.stride(0), ancestors.stride(0), step,
            MAX_STEPS=max_steps, STEPS_BLOCK=triton.next_power_of_2(max_steps),
            REQUESTS=triton.next_power_of_2(requests), BLOCK=block, PDL=pdl, launch_pdl=pdl,
            num_warps=min(8, max(1, block // 512)),
        )  # fmt: skip
    return out, positions, hidden
