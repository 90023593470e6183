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

    For requests of as many beams each, without exclusions, whose scores are normalised over the level or the
    vocabulary. Arguments and result are `beam_select`'s. No host synchronisation.
    """
    rows, codes = logits.shape
    requests = len(mask_index)
    beams = rows // requests
    request = torch.arange(rows, device=logits.device) // beams
    if log_normalizer is None:
        log_normalizer = logits.logsumexp(-1)
    at = nodes.clamp(min=0).long()
    place = child_starts[at].long()[:, None] + torch.arange(codes, device=logits.device)  # [rows, codes]
    is_child = (place < child_starts[at + 1].long()[:, None]) & (scores > -torch.inf)[:, None]
    child = place.clamp_(max=len(child_codes) - 1)
    legal = is_child & node_masks[mask_index[request].long()[:, None], child]
    node_of = torch.full((rows, codes + 1), -1, dtype=torch.int32, device=logits.device)
    node_of.scatter_(1, torch.where(legal, child_codes[child].long(), codes), child.int())
    node_of = node_of[:, :codes].reshape(requests, -1)
    masked = (logits + (scores - log_normalizer)[:, None]).view(requests, -1).masked_fill(node_of < 0, -torch.inf)
    best = masked.sort(dim=1, descending=True, stable=True)
    kept = num_out // requests
    chosen, order = best.values[:, :kept], best.indices[:, :kept]
    dead = ~(chosen > -torch.inf)
    parents = order // codes + row_starts[:-1, None]
    scanned = torch.full_like(row_starts[:-1], beams)
    return BeamSelection(
        chosen.flatten(),
        torch.where(dead, row_starts[:-1, None], parents).int().flatten(),
        node_of.gather(1, order).masked_fill(dead, -1).flatten(),
        scanned,
        scanned * codes,
    )
