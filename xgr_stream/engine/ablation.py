"""What the engine would do without masking first, and what its early stop spares: for the ablation."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    alive = real & (scores[row] > -torch.inf)
    is_child &= alive[..., None]
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
    return BeamSelection(
        score.masked_fill(dead, -torch.inf),
        torch.where(dead, first, row_starts[request] + order // codes).int(),
        node_of[request, order].masked_fill(dead, -1),
        alive.sum(1, dtype=torch.int32),
        legal.flatten(1).sum(1, dtype=torch.int32),
    )


class Skipped(NamedTuple):
    """Of one level's search, over all requests."""

    beams: int
    """That were alive, and whose children were not looked at."""
    live_beams: int
    children: int
    """Of those that were alive, that were not looked at, or below the bound by then, or not legal."""
    live_children: int


class Searched(NamedTuple):
    """One level's search, on the device."""

    selection: BeamSelection
    scores: Tensor
    """[rows] float32, of the beams before it; -inf for dead ones."""
    nodes: Tensor
    """[rows] int32, where they stand."""
    child_starts: Tensor
    """[parents + 1] int32."""

    def skipped(self) -> Skipped:
        alive = self.scores > -torch.inf
        at = self.nodes[alive].long()
        live_beams, live_children = len(at), int((self.child_starts[at + 1] - self.child_starts[at]).sum())
        scanned, kept = int(self.selection.beams_scanned.sum()), int(self.selection.children_kept.sum())
        return Skipped(live_beams - scanned, live_beams, live_children - kept, live_children)
