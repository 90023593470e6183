"""beam_perturb in plain torch: a dense table of children, in float64, since differences of keys are what counts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from xgr_kernels.mask_exclude import NO_NODE
from xgr_kernels.others import other_nodes
from xgr_kernels.ragged import contains, keys_in_groups


def _int64(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


BLOCK = 1 << 20
"""Children at once: a dozen intermediates of 8 MB."""
GOLDEN = 0x9E3779B97F4A7C15
MIX = (_int64(0xBF58476D1CE4E5B9), _int64(0x94D049BB133111EB))


def beam_perturb(
    logits: Tensor,
    keys: Tensor,
    log_probs: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
    mask_index: Tensor,
    **rest: Any,
) -> tuple[Tensor, Tensor]:
    rows, codes = logits.shape
    row = torch.arange(rows, device=logits.device)
    request = torch.searchsorted(row_starts[1:].long(), row, right=True).clamp_(max=len(mask_index) - 1)
    alive = (row < row_starts[-1]) & (keys > -torch.inf)
    table = torch.empty((2, rows, codes), device=logits.device)
    step = max(1, BLOCK // codes)
    for first in range(0, rows, step):
        some = slice(first, first + step)
        _fill(
            table[:, some],
            logits[some],
            keys[some],
            log_probs[some],
            nodes[some],
            alive=alive[some],
            request=request[some],
            mask_index=mask_index,
            **rest,
        )
    by_key, by_log_prob = table
    return by_key, by_log_prob


def _fill(
    table: Tensor,
    logits: Tensor,
    keys: Tensor,
    log_probs: Tensor,
    nodes: Tensor,
    *,
    alive: Tensor,
    request: Tensor,
    child_starts: Tensor,
    child_codes: Tensor,
    node_masks: Tensor,
    mask_index: Tensor,
    emptied_starts: Tensor,
    emptied_nodes: Tensor,
    others: Tensor | None,
    temperatures: Tensor,
    seeds: Tensor,
    level: int,
) -> None:
    """Write the keys and log-probabilities of some rows' legal children into `table` [2, rows, codes]."""
    masks = mask_index.long()[request][:, None]

    def below(at: Tensor) -> Tensor:
        """The child of each of these nodes [rows], of which -1 is none, by its code; -1 for none. [rows, codes]"""
        parents = at.clamp(min=0).long()
        first, end = child_starts[parents].long(), child_starts[parents + 1].long()
        last = torch.where((at < 0) | (first == end), -1, end - 1)
        # Behind the last child it comes again, to the same place.
        child = torch.minimum(first[:, None] + torch.arange(logits.shape[1], device=logits.device), last[:, None])
        return torch.full_like(child, -1).scatter_(1, child_codes[child.clamp(min=0)].long(), child)

    def are_legal(child: Tensor) -> Tensor:
        legal = (child >= 0) & node_masks[masks, child.clamp(min=0)]
        return legal & ~_emptied(request, child, emptied_starts, emptied_nodes) if len(emptied_nodes) else legal

    at = nodes.masked_fill(~alive, -1)
    number = below(at)
    own = legal = are_legal(number)
    if others is not None:
        more = below(other_nodes(others, at))
        legal = own | are_legal(more)
        number = torch.minimum(number & NO_NODE, more & NO_NODE)  # the first trie's, if both have one
    scaled = (logits.double() / temperatures[request, None].double()).masked_fill_(~legal, -torch.inf)
    conditional = scaled - scaled.logsumexp(1, keepdim=True)
    noisy = log_probs.double()[:, None] + conditional - _uniform(seeds[request, None], level, number).log().neg().log()
    key = _conditioned(noisy, keys.double()[:, None])
    for values, kept in ((key, table[0]), (conditional, table[1])):
        kept.copy_(values.masked_fill_(~own, -torch.inf))


def _emptied(request: Tensor, child: Tensor, starts: Tensor, emptied: Tensor) -> Tensor:
    """Which children [rows, codes] are among the emptied nodes of their request, of which there is one at least."""
    place = torch.arange(len(emptied), device=child.device)
    owner = torch.searchsorted(starts[1:].long(), place, right=True)  # behind the last request: no request's
    known = keys_in_groups(owner, emptied.masked_fill(place >= starts[-1], 0))
    return contains(known, keys_in_groups(request[:, None], child))


def _conditioned(noisy: Tensor, maximum: Tensor) -> Tensor:
    """Gumbels [rows, children], made to have this maximum [rows, 1]: appendix B.3 of the paper."""
    apart = noisy - noisy.amax(1, keepdim=True)
    v = maximum - noisy + _log1mexp(apart)
    return maximum - v.clamp(min=0) - v.abs().neg().exp().log1p()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x at most 0, exact near both ends."""
    near = x > -math.log(2)
    return torch.where(near, torch.expm1(x).neg().log(), torch.exp(x).neg().log1p())


def _uniform(seeds: Tensor, level: int, nodes: Tensor) -> Tensor:
    """Between 0 and 1, float64: a hash of each node's number (splitmix64), the same on every device."""
    stream = _mixed(seeds + _int64(GOLDEN * (level + 1)))
    return ((_mixed(stream + nodes * _int64(GOLDEN)) >> 11) & ((1 << 53) - 1)).double().add(0.5).mul(2.0**-53)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * MIX[0]
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * MIX[1]
    return z ^ ((z >> 31) & ((1 << 33) - 1))
