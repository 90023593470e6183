"""legal_normalizer in Triton: one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgr_kernels.beam_select.legality import (
    bisect,
    child_logits,
    emptied_among,
    fold,
    is_legal,
    lower_bound,
    owner_of,
)
from xgr_kernels.dependent_launch import dependent_launch


@triton.jit
def legal_normalizer_kernel(
    normalizers, logits, nodes, row_starts, child_starts, child_codes, node_masks, mask_index, emptied_starts,
    emptied_nodes, others, requests, num_children, logits_stride, pairs,
    REQUESTS: tl.constexpr, LONG: tl.constexpr, SHORT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    node = tl.load(nodes + row)
    request = owner_of(row, row_starts, requests, REQUESTS)
    alive = (node >= 0) & (request < requests)  # the rest is padding
    request = tl.minimum(request, requests - 1)
    node = tl.where(alive, node, 0)
    place = lower_bound(others, node * 0, node * 0 + pairs, node)
    shared = alive & (place < pairs)
    shared = shared & (tl.load(others + place, mask=shared, other=-1) == node)
    other = tl.load(others + pairs + place, mask=shared, other=0)
    # Both rows of a prefix add up the same: first the first trie's node, then what the second's has beyond it.
    base = tl.where(shared, tl.minimum(node, other), node)
    first = tl.load(child_starts + base)
    count = tl.where(alive, tl.load(child_starts + base + 1) - first, 0)
    logits_row = logits + row.to(tl.int64) * logits_stride
    mask_row = node_masks + tl.load(mask_index + request).to(tl.int64) * num_children
    all_first = tl.load(emptied_starts + request)
    all_last = tl.load(emptied_starts + request + 1)
    emptied_first, emptied_last = emptied_among(emptied_nodes, all_first, all_last, first, count)
    peak = -3.0e38
    total = 0.0
    for start in range(0, count, LONG):
        values = child_logits(
            logits_row, mask_row, child_codes, emptied_nodes, emptied_first, emptied_last, first, count, count, start,
            1, LONG,
        )  # fmt: skip
        peak, total = fold(values, peak, total)
    behind = tl.maximum(node, other)
    behind_first = tl.load(child_starts + behind, mask=shared, other=0)
    behind_last = tl.load(child_starts + behind + 1, mask=shared, other=0)
    for start in range(behind_first, behind_last, SHORT):
        child = start + tl.arange(0, SHORT)
        inside = child < behind_last
        code = tl.load(child_codes + child, mask=inside, other=0)
        more = is_legal(child, inside, mask_row, emptied_nodes, all_first, all_last)
        same = bisect(child_codes, first, first + count, code)
        twin = inside & (same < first + count)
        twin = twin & (tl.load(child_codes + same, mask=twin, other=-1) == code)
        twin = is_legal(same, twin, mask_row, emptied_nodes, emptied_first, emptied_last)
        values = tl.load(logits_row + code, mask=more & (twin == 0), other=float("-inf")).to(tl.float32)
        peak, total = fold(values, peak, total)
    tl.store(normalizers + row, peak + tl.log(total))


def legal_normalizer(
    logits: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
    child_starts: Tensor,
    child_codes: Tensor,
    node_masks: Tensor,
    mask_index: Tensor,
    emptied_starts: Tensor,
    emptied_nodes: Tensor,
    others: Tensor,
) -> Tensor:
    (rows, codes), requests = logits.shape, len(mask_index)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    others = others.contiguous()
    normalizers = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        pdl = dependent_launch(logits)
        block = triton.next_power_of_2(codes)
        legal_normalizer_kernel[(rows,)](
            normalizers, logits, nodes, row_starts, child_starts, child_codes, node_masks.view(torch.uint8), mask_index,
            emptied_starts, emptied_nodes, others, requests, len(child_codes), logits.stride(0), others.shape[1],
            REQUESTS=triton.next_power_of_2(requests), LONG=min(2048, block), SHORT=min(128, block),
            PDL=pdl, launch_pdl=pdl, num_warps=4,
        )  # fmt: skip
    return normalizers
