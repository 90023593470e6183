"""What the engine would do without masking first, for the ablation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xgr_kernels.beam_select import BeamSelection


def select_masking_last(
    logits: Tensor,
    scores: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
    out_starts: Tensor,
    child_starts: Tensor,
    child_codes: Tensor,
    node_masks: Tensor,
    mask_index: Tensor,
    num_out: int,
    log_normalizer: Tensor | None,
    **unused: Any,
) -> BeamSelection:
    """`beam_select` as engines without a catalog do it: score all codes of all beams, mask them in one dense table, sort.

    For requests without exclusions, normalised over the level or the vocabulary. No host synchronisation.
    """
    rows, codes = logits.shape
    requests = len(mask_index)
    device = logits.device
    row = torch.arange(rows, device=device)
    request = torch.searchsorted(row_starts[1:].contiguous(), row, right=True)
    real = request < requests
    request = request.clamp_(max=requests - 1)
    if log_normalizer is None:
        log_normalizer = logits.logsumexp(-1)
    at = nodes.clamp(min=0).long()
    first, last = child_starts[at].long(), child_starts[at + 1].long()
    offset = torch.arange(codes, device=device)
    child = (first[:, None] + offset).clamp_(max=len(child_codes) - 1)  # [rows, codes]
    is_child = (first[:, None] + offset < last[:, None]) & (real & (scores > -torch.inf))[:, None]
    legal = is_child & node_masks[mask_index[request].long()[:, None], child]
    code = torch.where(legal, child_codes[child].long(), codes)
    node_of = torch.full((rows, codes + 1), -1, dtype=torch.int32, device=device)
    node_of.scatter_(1, code, child.int())
    node_of = node_of[:, :codes]
    score = (logits + (scores - log_normalizer)[:, None]).masked_fill(node_of < 0, -torch.inf)

    widest = rows // requests if rows >= requests else rows
    table = score.view(requests, -1) if rows % requests == 0 else score.new_full((requests, widest * codes), -torch.inf)
    order = table.argsort(dim=1, descending=True, stable=True)
    out = torch.arange(num_out, device=device)
    owner = torch.searchsorted(out_starts[1:].contiguous(), out, right=True).clamp_(max=requests - 1)
    place = order[owner, (out - out_starts[owner]).clamp_(min=0, max=order.shape[1] - 1)]
    chosen_score = table[owner, place]
    dead = ~(chosen_score > -torch.inf) | (out >= out_starts[-1])
    parent = (owner * (rows // requests) + place // codes).int()
    return BeamSelection(
        chosen_score.masked_fill(dead, -torch.inf),
        torch.where(dead, row_starts[:-1][owner].int(), parent),
        node_of.view(requests, -1)[owner, place].masked_fill(dead, -1),
        row_starts.diff().int(),
    )
