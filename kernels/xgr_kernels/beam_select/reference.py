"""beam_select in plain torch.

A beam's bound is its score plus its row's best log-probability: no child can score more. τ, a request's width-th best
candidate among the beams that lead by bound, can only rise as more are scanned; so a beam whose bound is below τ is
not scanned, and a candidate below τ is not kept. Ties survive both; the sort leaves them in the order of their nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.ragged import contains, owners, padded_index

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
    rows, requests, codes = int(row_starts[-1]), mask_index.shape[0], logits.shape[1]  # behind `rows` is padding
    logits, scores, nodes = logits[:rows].float(), scores[:rows], nodes[:rows]
    if log_normalizer is not None:
        logits = logits - log_normalizer[:rows, None]
    elif normalizer == "level":
        logits = logits.log_softmax(-1)
    normalised = log_normalizer is not None or normalizer == "level"
    emptied_nodes = emptied_nodes[: int(emptied_starts[-1])]
    request_of = owners(row_starts)
    alive = scores > -torch.inf
    at = nodes.clamp(min=0)
    first_child = child_starts.index_select(0, at)
    num_children = (child_starts.index_select(0, at + 1) - first_child) * alive
    # In this order the children come sorted by node, too, request by request.
    by_node = at.argsort() if requests == 1 else (request_of * child_starts.shape[0] + at).argsort()

    def legal_children(scanned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, node and logit [legal] of the legal children of the rows where `scanned` [rows] is true."""
        counts = (num_children * scanned).index_select(0, by_node)
        parent = torch.repeat_interleave(counts)
        row = by_node.index_select(0, parent)
        skipped = first_child.index_select(0, by_node) - counts.cumsum(0) + counts
        node = torch.arange(row.shape[0], device=row.device) + skipped.index_select(0, parent)
        if requests == 1:
            legal = node_masks.index_select(0, mask_index)[0].index_select(0, node)
        else:
            masks_at = mask_index.long() * node_masks.shape[1]
            legal = node_masks.take(node + masks_at.index_select(0, request_of.index_select(0, row)))
        if emptied_nodes.shape[0]:
            owner, stride = owners(emptied_starts), child_codes.shape[0]
            legal &= ~contains(owner * stride + emptied_nodes, request_of.index_select(0, row) * stride + node)
        if not legal.all():
            kept = legal.nonzero()[:, 0]
            row, node = row.index_select(0, kept), node.index_select(0, kept)
        return row, node, logits.take(row * codes + child_codes.index_select(0, node))

    widths = out_starts.diff()
    scanned, tau = alive, None
    # Without a normalizer yet, it takes every legal child: nothing is left to spare.
    if early_stop and normalised and int(num_children.sum()) > FEW * int(out_starts[-1]):
        bound = (scores + logits.amax(-1)).masked_fill_(~alive, -torch.inf)
        leading = alive & _leads(bound, num_children, row_starts, widths)
        row, _, logit = legal_children(leading)
        counts = _tally(request_of.index_select(0, row), requests)
        tau = _nth_best(scores.index_select(0, row) + logit, counts, widths)
        scanned = leading | (alive & (bound >= tau.index_select(0, request_of)))
    row, node, logit = legal_children(scanned)
    if not normalised:
        scores = scores - _log_sum_exp(logit, row, rows)
    score = scores.index_select(0, row) + logit
    request = request_of.index_select(0, row)
    if tau is not None:
        kept = score >= tau.index_select(0, request)
        row, node, score, request = row[kept], node[kept], score[kept], request[kept]
    counts = _tally(request, requests)
    best = _best(score, row, node, counts, row_starts, out_starts)
    padding = 0 if num_out is None else num_out - best[0].shape[0]
    if padding:
        best = tuple(
            torch.nn.functional.pad(x, (0, padding), value=value)
            for x, value in zip(best, (-torch.inf, 0, -1), strict=True)
        )
    return *best, _tally(request_of, requests, scanned).int(), counts.int()


def _tally(request: Tensor, requests: int, counted: Tensor | None = None) -> Tensor:
    """How many of the elements [n], or of those that are `counted` [n], are of each request. [requests]"""
    if requests == 1:
        return request.new_full((1,), request.shape[0]) if counted is None else counted.sum(0, keepdim=True)
    return torch.bincount(request if counted is None else request[counted], minlength=requests)


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


def _nth_best(score: Tensor, counts: Tensor, n: Tensor) -> Tensor:
    """The n-th best score [requests] of each request's candidates, of which there are `counts` [requests], request by
    request; -inf if there are fewer."""
    table = _table(score, counts)
    most = min(int(n.max()), table.shape[1])
    best = torch.nn.functional.pad(table.topk(most, dim=1).values, (0, 1), value=-torch.inf)
    return best.gather(1, (n.long() - 1).clamp(min=0, max=most)[:, None])[:, 0]


def _best(
    score: Tensor, row: Tensor, node: Tensor, counts: Tensor, row_starts: Tensor, out_starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The requests' output beams, from their candidates: `counts` [requests] of them, request by request, nodes
    ascending."""
    out, widths = int(out_starts[-1]), out_starts.diff()
    widest = out if widths.shape[0] == 1 else int(widths.max())
    first = counts.cumsum(0) - counts
    if widest * widths.shape[0] == out and int(counts.min()) >= widest > 0:  # as many each, and none is missing
        best, order = _table(score, counts).sort(dim=1, descending=True, stable=True)
        chosen = (order[:, :widest] + first[:, None]).flatten()
        return best[:, :widest].flatten(), row.take(chosen).int(), node.take(chosen).int()
    owner = owners(out_starts)  # [out]
    if not score.shape[0]:
        nothing = torch.full_like(owner, -1, dtype=torch.int32)
        return torch.full_like(nothing, -torch.inf, dtype=score.dtype), row_starts.index_select(0, owner), nothing
    order = _table(score, counts).argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(owner.shape[0], device=score.device) - out_starts.index_select(0, owner)
    missing = rank >= counts.index_select(0, owner)
    rank = rank.masked_fill_(missing, 0)
    chosen = order.take(owner * order.shape[1] + rank) + first.index_select(0, owner)
    chosen = chosen.masked_fill_(missing, 0)
    return (
        torch.where(missing, -torch.inf, score.take(chosen)),
        torch.where(missing, row_starts.index_select(0, owner), row.take(chosen)).int(),
        torch.where(missing, -1, node.take(chosen)).int(),
    )


def _table(score: Tensor, counts: Tensor) -> Tensor:
    """Scores that lie request by request as [requests, most], -inf behind a request's `counts` [requests]."""
    if counts.shape[0] == 1:
        return score[None]
    index, real = padded_index(counts.cumsum(0) - counts, counts)
    return score.take(index).masked_fill_(~real, -torch.inf)
