"""beam_select in plain torch.

A beam's bound is its score plus its row's best log-probability: no child can score more. τ, a request's width-th best
candidate among the beams that lead by bound, can only rise as more are scanned; so a beam whose bound is below τ is
not scanned, and a candidate below τ is not kept. Ties survive both; the sort leaves them in the order of their nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.ragged import padded_index

FEW = 16
"""Up to as many children per beam asked for, all are scanned: bounds would cost more than they spare."""


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
    early_stop: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = int(row_starts[-1])  # what lies behind is padding
    logits, scores, nodes = logits[:rows].float(), scores[:rows], nodes[:rows]
    log_normalizer = None if log_normalizer is None else log_normalizer[:rows]
    emptied_nodes = emptied_nodes[: int(emptied_starts[-1])]
    widths = out_starts.diff().long()
    request_of = torch.repeat_interleave(row_starts.diff())  # [rows]
    mask_of = mask_index[request_of]
    alive = scores > -torch.inf
    at = nodes.long().clamp(min=0)
    first_child = child_starts[at].long()
    num_children = (child_starts[at + 1] - first_child).masked_fill_(~alive, 0)
    # In this order the children come sorted by node, too, request by request.
    by_node = (request_of * len(child_starts) + at).argsort()

    def legal_children(scanned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, node and logit [legal] of the legal children of the rows where `scanned` [rows] is true."""
        rows = by_node[scanned[by_node]]
        counts = num_children[rows]
        parent = torch.repeat_interleave(counts)
        row, skipped = rows[parent], (first_child[rows] - counts.cumsum(0) + counts)[parent]
        node = torch.arange(len(row), device=row.device) + skipped
        legal = node_masks[mask_of[row], node]
        if len(emptied_nodes):
            owner, stride = torch.repeat_interleave(emptied_starts.diff()), len(child_codes)
            legal &= ~_contains(owner * stride + emptied_nodes, request_of[row] * stride + node)
        row, node = row[legal], node[legal]
        return row, node, logits[row, child_codes[node]]

    if log_normalizer is None and normalizer == "level":
        log_normalizer = logits.logsumexp(-1)
    scanned, tau = alive, None
    # Without a normalizer yet, it takes every legal child: nothing is left to spare.
    if early_stop and log_normalizer is not None and int(num_children.sum()) > FEW * int(widths.sum()):
        bound = (scores - log_normalizer + logits.amax(-1)).masked_fill_(~alive, -torch.inf)
        leading = alive & _leads(bound, num_children, row_starts, widths)
        row, _, logit = legal_children(leading)
        tau = _nth_best((scores - log_normalizer)[row] + logit, request_of[row], widths)
        scanned = leading | (alive & (bound >= tau[request_of]))
    row, node, logit = legal_children(scanned)
    if log_normalizer is None:
        log_normalizer = _log_sum_exp(logit, row, len(logits))
    score = (scores - log_normalizer)[row] + logit
    if tau is not None:
        kept = score >= tau[request_of[row]]
        row, node, score = row[kept], node[kept], score[kept]
    request = request_of[row]
    best = _best(score, row, node, request, row_starts, out_starts)
    padding = 0 if num_out is None else num_out - len(best[0])
    if padding:
        best = tuple(
            torch.nn.functional.pad(x, (0, padding), value=value)
            for x, value in zip(best, (-torch.inf, 0, -1), strict=True)
        )
    counts = (torch.bincount(of, minlength=len(widths)).int() for of in (request_of[scanned], request))
    return *best, *counts


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
    index, real = padded_index(row_starts[:-1], row_starts.diff())
    by_bound = bound[index].masked_fill_(~real, -torch.inf).argsort(dim=1, descending=True, stable=True)
    children = num_children[index].masked_fill_(~real, 0).gather(1, by_bound)
    enough = children.cumsum(1) - children < widths[:, None]
    return torch.zeros_like(real).scatter_(1, by_bound, enough)[real]


def _nth_best(score: Tensor, request: Tensor, n: Tensor) -> Tensor:
    """The n-th best score [requests] of each request's candidates, which lie request by request; -inf if there are
    fewer."""
    place, most = _places(request, len(n))
    widest = int(n.max())
    table = score.new_full((len(n), max(most, widest)), -torch.inf)
    table[request, place] = score
    return table.topk(widest, dim=1).values.gather(1, (n - 1).clamp(min=0)[:, None])[:, 0]


def _best(
    score: Tensor,
    row: Tensor,
    node: Tensor,
    request: Tensor,
    row_starts: Tensor,
    out_starts: Tensor,
) -> tuple[Tensor, ...]:
    """The requests' output beams, from candidates that lie request by request, nodes ascending."""
    requests, widths = len(out_starts) - 1, out_starts.diff()
    place, most = _places(request, requests)
    # Beams for which there are no candidates stay as they are here, and come last.
    shape = (requests, max(most, int(widths.max())))
    scores = score.new_full(shape, -torch.inf)
    nodes = torch.full(shape, -1, dtype=torch.int32, device=score.device)
    parents = row_starts[:-1, None].int().repeat(1, shape[1])
    scores[request, place], nodes[request, place], parents[request, place] = score, node.int(), row.int()
    order = scores.argsort(dim=1, descending=True, stable=True)
    owner = torch.repeat_interleave(widths)  # [out]
    chosen = owner, order[owner, torch.arange(len(owner), device=score.device) - out_starts[owner]]
    return scores[chosen], parents[chosen], nodes[chosen]


def _places(request: Tensor, requests: int) -> tuple[Tensor, int]:
    """Each candidate's place among its request's, which lie side by side: [n]; and how many the largest has."""
    counts = torch.bincount(request, minlength=requests)
    return torch.arange(len(request), device=request.device) - (counts.cumsum(0) - counts)[request], int(counts.max())
