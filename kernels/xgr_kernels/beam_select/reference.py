"""beam_select in plain torch.

A beam's bound is its score plus its row's best log-probability: no child can score more. τ, a request's width-th best
candidate among the beams that lead by bound, can only rise as more are scanned; so a beam whose bound is below τ is
not scanned, and a candidate below τ is not kept. Ties survive both; the sort leaves them in the order of their nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xgr_kernels.ragged import contains, counts_of, keys_in_groups, owners, padded_index
from xgr_kernels.scales import in_float32

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
    log_normalizer: Tensor | None,
    num_out: int | None = None,
    early_stop: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    starts, outs = row_starts.tolist(), out_starts.tolist()
    rows, out, requests, codes = starts[-1], outs[-1], mask_index.shape[0], logits.shape[1]
    if rows < logits.shape[0]:  # behind them is padding
        logits, scores, nodes = logits[:rows], scores[:rows], nodes[:rows]
        log_normalizer = log_normalizer if log_normalizer is None else log_normalizer[:rows]
    logits = in_float32(logits)
    if log_normalizer is None:
        logits = logits.log_softmax(-1)
    # What a row's candidates have beside their logits.
    offset = scores if log_normalizer is None else scores - log_normalizer
    request_of = None if requests == 1 else owners(row_starts)
    alive = scores > -torch.inf
    at = nodes.clamp(min=0)
    first_child = child_starts.index_select(0, at)
    num_children = child_starts[1:].index_select(0, at).sub_(first_child).mul_(alive)
    # In this order the children come sorted by node, too, request by request.
    by_node = (at if request_of is None else request_of * child_starts.shape[0] + at).argsort()
    masks = mask_index.tolist()
    num_emptied = emptied_starts.tolist()[-1]

    def per_row(values: Tensor, row: Tensor | None = None) -> Tensor:
        """Of values [requests] the one of each row's request, or of each of `row`."""
        if request_of is None:
            return values
        return values.index_select(0, request_of if row is None else request_of.index_select(0, row))

    def tally(row: Tensor) -> Tensor:
        """How many of the rows `row` [n] are of each request. [requests] int32"""
        if request_of is None:
            return torch.full((1,), row.shape[0], dtype=torch.int32, device=row.device)
        return torch.bincount(request_of.index_select(0, row), minlength=requests).int()

    def legal_children(children: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row, node and score [legal] of the legal ones of the rows' `children` [rows], `total` together."""
        place = torch.arange(total, dtype=torch.int32, device=children.device)
        if rows == 1:
            row, node = torch.zeros_like(place, dtype=torch.int64), place + first_child
        else:
            ends = children.index_select(0, by_node).cumsum(0, dtype=torch.int32)
            parent = torch.searchsorted(ends, place, right=True, out_int32=True)  # repeat_interleave: twice as long
            row = by_node.index_select(0, parent)
            # A row's children lie where its first one does, as far behind as the place behind those of the rows before.
            behind = (first_child + children).index_select(0, by_node).sub_(ends)
            node = behind.index_select(0, parent).add_(place)
        if request_of is None or masks.count(masks[0]) == requests:
            legal = node_masks[masks[0]].index_select(0, node)
        else:
            legal = node_masks.take(node + per_row(mask_index.long() * node_masks.shape[1], row))
        if num_emptied:
            emptied, own = emptied_nodes[:num_emptied], node
            if request_of is not None:
                own = keys_in_groups(request_of.index_select(0, row), own)
                emptied = keys_in_groups(owners(emptied_starts), emptied)
            legal &= ~contains(emptied, own)
        if not legal.all():
            kept = legal.nonzero()[:, 0]
            row, node = row.index_select(0, kept), node.index_select(0, kept)
        return row, node, scored.take(torch.add(child_codes.index_select(0, node), row, alpha=codes))

    scored = logits + offset[:, None]
    scanned, total = alive, int(num_children.sum())
    if early_stop and total > FEW * out:
        widths = out_starts.diff()
        bound = (offset + logits.amax(-1)).masked_fill_(~alive, -torch.inf)
        leading = alive & _leads(bound, num_children, row_starts, widths)
        children = num_children * leading
        row, _, score = legal_children(children, int(children.sum()))
        tau = _nth_best(score, tally(row), widths)
        scanned = leading | (alive & (bound >= per_row(tau)))
        children = num_children * scanned
        row, node, score = legal_children(children, int(children.sum()))
        kept = score >= per_row(tau, row)
        row, node, score = row[kept], node[kept], score[kept]
    else:
        row, node, score = legal_children(num_children, total)
    counts = tally(row)
    if request_of is None:
        num_scanned = scanned.sum(0, keepdim=True, dtype=torch.int32)
    else:
        num_scanned = torch.bincount(request_of[scanned], minlength=requests).int()
    best = _best(score, row, node, counts, row_starts, out_starts)
    padding = 0 if num_out is None else num_out - out
    if padding:
        best = tuple(
            torch.nn.functional.pad(x, (0, padding), value=value)
            for x, value in zip(best, (-torch.inf, 0, -1), strict=True)
        )
    return *best, num_scanned, counts


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
    widths = counts_of(out_starts.tolist())
    widest = max(widths)
    if len(widths) == 1 and score.shape[0] >= widest > 0:
        best, order = score.sort(descending=True, stable=True)
        chosen = order[:widest]
        return best[:widest], row.index_select(0, chosen).int(), node.index_select(0, chosen)
    if widest * len(widths) == sum(widths) and min(counts.tolist()) >= widest > 0:  # as many each, and none is missing
        best, order = _table(score, counts).sort(dim=1, descending=True, stable=True)
        chosen = (order[:, :widest] + (counts.cumsum(0) - counts)[:, None]).flatten()
        return best[:, :widest].flatten(), row.index_select(0, chosen).int(), node.index_select(0, chosen)
    first = counts.cumsum(0) - counts
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
