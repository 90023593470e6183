"""beam_select in plain torch.

A beam's bound is its score plus its row's best log-probability: no child can score more. τ, a request's width-th best
candidate among the beams that lead by bound, can only rise as more are scanned; so a beam whose bound is below τ is
not scanned, and a candidate below τ is not kept. Ties survive both, and the sort settles them by node.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.ragged import padded_index


def beam_select(
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
    emptied_starts: Tensor,
    emptied_nodes: Tensor,
    normalizer: str,
    log_normalizer: Tensor | None,
    num_out: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = logits.float()
    widths = out_starts.diff().long()
    request_of = torch.repeat_interleave(row_starts.diff())  # [rows]
    alive = scores > -torch.inf
    at = nodes.long().clamp(min=0)
    first_child = child_starts[at].long()
    num_children = (child_starts[at + 1].long() - first_child).masked_fill_(~alive, 0)

    def legal_children(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row and node [legal] of the legal children of these rows, row by row, nodes ascending."""
        counts = num_children[rows]
        row = torch.repeat_interleave(rows, counts)
        step_back = torch.repeat_interleave(counts.cumsum(0) - counts - first_child[rows], counts)
        node = torch.arange(len(row), device=row.device) - step_back
        legal = node_masks[mask_index.long()[request_of[row]], node]
        if len(emptied_nodes):
            owner, stride = torch.repeat_interleave(emptied_starts.diff()), len(child_codes)
            legal &= ~_contains(owner * stride + emptied_nodes, request_of[row] * stride + node)
        return row[legal], node[legal]

    live = alive.nonzero().flatten()
    if log_normalizer is None and normalizer == "legal":
        leading, others = live, live[:0]  # the normalizer takes every legal child: nothing is left to spare
        row, node = legal_children(leading)
        norm = _log_sum_exp(logits[row, child_codes[node].long()], row, len(logits))
        bound = scores
    else:
        norm = logits.logsumexp(-1) if log_normalizer is None else log_normalizer
        bound = (scores + (logits.amax(-1) - norm)).masked_fill_(~alive, -torch.inf)
        leads = _leads(bound, num_children, row_starts, widths)
        leading, others = (alive & leads).nonzero().flatten(), (alive & ~leads).nonzero().flatten()
        row, node = legal_children(leading)
    score = scores[row] + (logits[row, child_codes[node].long()] - norm[row])
    if len(others):
        tau = _nth_best(score, request_of[row], widths)
        others = others[bound[others] >= tau[request_of[others]]]
        more_row, more_node = legal_children(others)
        row, node = torch.cat([row, more_row]), torch.cat([node, more_node])
        more_score = scores[more_row] + (logits[more_row, child_codes[more_node].long()] - norm[more_row])
        score = torch.cat([score, more_score])
        kept = score >= tau[request_of[row]]
        row, node, score = row[kept], node[kept], score[kept]
    scanned = torch.bincount(request_of[torch.cat([leading, others])], minlength=len(widths))
    chosen = _ordered(score, node, request_of[row], len(widths))
    return *_fill(score[chosen], row[chosen], node[chosen], request_of, row_starts, out_starts, num_out), scanned.int()


def _contains(sorted_keys: Tensor, keys: Tensor) -> Tensor:
    """Which of `keys` are among `sorted_keys`, both [n] int64."""
    place = torch.searchsorted(sorted_keys, keys).clamp_(max=len(sorted_keys) - 1)
    return sorted_keys[place] == keys


def _log_sum_exp(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Log-sum-exp of each group of values [n]; returns [groups], -inf for an empty one."""
    peak = values.new_full((groups,), -torch.inf).scatter_reduce_(0, group, values, "amax")
    total = values.new_zeros(groups).index_add_(0, group, (values - peak[group]).exp())
    return peak + total.log()


def _leads(bound: Tensor, num_children: Tensor, row_starts: Tensor, widths: Tensor) -> Tensor:
    """Which rows [rows] are scanned first: by bound, those that together have `widths` [requests] children."""
    beams = row_starts.diff()
    if bool((beams == 1).all()):  # level 0
        return torch.ones_like(bound, dtype=torch.bool)
    index, real = padded_index(row_starts[:-1], beams)
    by_bound = bound[index].masked_fill_(~real, -torch.inf).argsort(dim=1, descending=True, stable=True)
    children = num_children[index].masked_fill_(~real, 0).gather(1, by_bound)
    enough = children.cumsum(1) - children < widths[:, None]
    return torch.zeros_like(real).scatter_(1, by_bound, enough)[real]


def _nth_best(score: Tensor, request: Tensor, n: Tensor) -> Tensor:
    """The n-th best score [requests] of each request's candidates, which lie request by request; -inf if there are
    fewer."""
    counts = torch.bincount(request, minlength=len(n))
    place = torch.arange(len(request), device=score.device) - (counts.cumsum(0) - counts)[request]
    widest = int(n.max())
    table = score.new_full((len(n), max(int(counts.max()), widest)), -torch.inf)
    table[request, place] = score
    return table.topk(widest, dim=1).values.gather(1, (n - 1).clamp(min=0)[:, None])[:, 0]


def _ordered(score: Tensor, node: Tensor, request: Tensor, requests: int) -> Tensor:
    """Indices of the candidates: by request, score descending, node ascending."""
    order = node.argsort()
    order = order[score[order].argsort(descending=True, stable=True)]
    return order if requests == 1 else order[request[order].argsort(stable=True)]


def _fill(
    score: Tensor,
    row: Tensor,
    node: Tensor,
    request_of: Tensor,
    row_starts: Tensor,
    out_starts: Tensor,
    num_out: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the ordered candidates into the requests' output beams; drop those beyond, mark beams left over missing."""
    request = request_of[row]
    counts = torch.bincount(request, minlength=len(out_starts) - 1)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[request]
    fits = place < out_starts.diff()[request]
    slot = (out_starts[request] + place)[fits]
    missing = torch.repeat_interleave(row_starts[:-1].int(), out_starts.diff(), output_size=num_out)  # [out]
    scores = score.new_full((len(missing),), -torch.inf)
    scores[slot] = score[fits]
    parents, nodes = missing.clone(), torch.full_like(missing, -1)
    parents[slot] = row[fits].int()
    nodes[slot] = node[fits].int()
    return scores, parents, nodes
