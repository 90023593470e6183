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
    """`beam_select` as an engine without a trie does it: all codes of all beams are scored, the illegal ones masked,
    and the whole table is sorted.

    For a power of two of requests, of as many beams each, without exclusions; rows behind them are padding. Arguments
    and result are `beam_select`'s. No host synchronisation.
    """
    rows, codes = logits.shape
    requests = len(mask_index)
    if log_normalizer is None:
        log_normalizer = logits.logsumexp(-1)
    # Each request's rows side by side, [requests, beams], with what padding there is behind them.
    row = row_starts[:-1, None].long() + torch.arange(rows // requests, device=logits.device)
    real = row < row_starts[1:, None]
    row = torch.where(real, row, 0)
    at = nodes[row].clamp(min=0).long()
    place = child_starts[at].long()[..., None] + torch.arange(codes, device=logits.device)  # [requests, beams, codes]
    is_child = place < child_starts[at + 1].long()[..., None]
    is_child &= (real & (scores[row] > -torch.inf))[..., None]
    child = place.clamp_(max=len(child_codes) - 1)
    legal = is_child & node_masks[mask_index.long()[:, None, None], child]
    node_of = torch.full((*row.shape, codes + 1), -1, dtype=torch.int32, device=logits.device)
    node_of.scatter_(2, torch.where(legal, child_codes[child].long(), codes), child.int())
    node_of = node_of[..., :codes].flatten(1)
    scored = (logits + (scores - log_normalizer)[:, None])[row].flatten(1)
    best = scored.masked_fill(node_of < 0, -torch.inf).sort(dim=1, descending=True, stable=True)
    # Output by output: whose it is, and which of that request's best.
    out = torch.arange(num_out, device=logits.device)
    request = torch.searchsorted(out_starts[1:].contiguous(), out, right=True)
    padding = request == requests
    request = request.clamp_(max=requests - 1)
    rank = out - out_starts[request]
    dead = padding | (rank >= best.values.shape[1])
    rank = rank.masked_fill(dead, 0)
    score, order = best.values[request, rank], best.indices[request, rank]
    dead |= ~(score > -torch.inf)
    first = torch.where(padding, 0, row_starts[request])
    scanned = row_starts.diff()
    return BeamSelection(
        score.masked_fill(dead, -torch.inf),
        torch.where(dead, first, row_starts[request] + order // codes).int(),
        node_of[request, order].masked_fill(dead, -1),
        scanned,
        scanned * codes,
    )
