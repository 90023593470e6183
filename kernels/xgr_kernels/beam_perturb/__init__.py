"""Perturbed scores of the beams' legal children: what stochastic beam search selects by, in place of scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xgr_kernels.beam_perturb import reference
from xgr_kernels.checks import check_shape

__all__ = ["PerturbedChildren", "beam_perturb"]


class PerturbedChildren(NamedTuple):
    """For each code of each row, -inf where no legal child of the row's own node has it."""

    keys: Tensor
    """[rows, codes] float32: of a child, at most its beam's; that of one of the prefix's children is its beam's."""
    log_probs: Tensor
    """[rows, codes] float32: of the child, given its beam, among the prefix's legal children."""


def beam_perturb(
    logits: Tensor,
    keys: Tensor,
    log_probs: Tensor,
    nodes: Tensor,
    *,
    row_starts: Tensor,
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
) -> PerturbedChildren:
    """Gumbel noise on the children's log-probabilities, conditioned on its maximum over a beam's children being the
    beam's own key (Kool, van Hoof, Welling 2019): to keep the beams of the highest keys at every level, and the first n
    in the end, is to draw n leaves without replacement, each with the probability that the levels' softmaxes give it.

    A child's probability is the softmax over its beam's legal children of logits / temperature. Its noise depends on
    the request's seed, the level and the child's node alone, not on what else is in the batch nor on the number of
    beams. Of a prefix that is two nodes (`others`, as in `legal_normalizer`) the children of both count, whether the
    other node has a beam or not, each code once and by the first trie's node where there is one: what is below both
    nodes has the same key below either.

    logits: [rows, codes] float32; keys: [rows] float32, the beams', -inf for a dead one, 0 at the root; log_probs:
    [rows] float32, accumulated; nodes: [rows] int32. temperatures: [requests] float32, above 0; seeds: [requests]
    int64; level: of the children, from 0. The others as in `beam_select`, whose `logits` the returned keys are to be,
    with scores of 0 and log-normalizers of 0. In plain torch on every device, without a host synchronisation; there is
    no kernel of its own. Raises ValueError on arguments that do not fit each other.
    """
    rows, requests = len(logits), len(mask_index)
    check_shape("logits", logits, (rows, None))
    for name, tensor in (("keys", keys), ("log_probs", log_probs), ("nodes", nodes)):
        check_shape(name, tensor, (rows,))
    for name, tensor in (("row_starts", row_starts), ("emptied_starts", emptied_starts)):
        check_shape(name, tensor, (requests + 1,))
    if others is not None:
        check_shape("others", others, (2, None))
    for name, tensor in (("temperatures", temperatures), ("seeds", seeds)):
        check_shape(name, tensor, (requests,))
    check_shape("node_masks", node_masks, (None, len(child_codes)))
    if seeds.dtype != torch.int64:
        raise ValueError(f"seeds must be int64, not {seeds.dtype}")
    if level < 0:
        raise ValueError(f"level must be at least 0, not {level}")
    return PerturbedChildren(
        *reference.beam_perturb(
            logits,
            keys,
            log_probs,
            nodes,
            row_starts=row_starts,
            child_starts=child_starts,
            child_codes=child_codes,
            node_masks=node_masks,
            mask_index=mask_index,
            emptied_starts=emptied_starts,
            emptied_nodes=emptied_nodes,
            others=others,
            temperatures=temperatures,
            seeds=seeds,
            level=level,
        )
    )
