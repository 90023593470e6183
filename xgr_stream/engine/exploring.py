"""Requests that draw items by chance instead of taking the best: how their beams are selected."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xgr_kernels.beam_perturb import beam_perturb
from xgr_kernels.beam_select import BeamSelection, beam_select
from xgr_stream.types import RecommendRequest


class Exploration:
    """Stands in for `beam_select` in one decode, and keeps the beams' scores, which selection goes past. On CUDA its
    tensors are to be made and used on the decode's lane."""

    scores: Tensor
    """After each selection: the chosen beams' scores, as they would be without chance. [out]"""

    def __init__(
        self, requests: Sequence[RecommendRequest], padded: int, others: Sequence[Tensor] | None, device: torch.device
    ) -> None:
        """`padded`: how many requests the decode's arrays have room for; `others`: those of `TrieTensors`."""
        rest = padded - len(requests)
        temperatures = [request.temperature or 1.0 for request in requests] + [1.0] * rest
        self._temperatures = torch.tensor(temperatures, dtype=torch.float32).to(device, non_blocking=True)
        seeds = torch.tensor([*map(seed_of, requests), *[0] * rest], dtype=torch.int64)
        self._seeds = seeds.to(device, non_blocking=True)
        self._others = others
        self._level = 0

    def select(
        self,
        logits: Tensor,
        scores: Tensor,
        nodes: Tensor,
        *,
        log_normalizer: Tensor | None,
        child_codes: Tensor,
        row_starts: Tensor,
        out_starts: Tensor,
        num_out: int,
        early_stop: bool,
        **legality: Any,
    ) -> BeamSelection:
        """`beam_select`, where `scores` and those of the result are the beams' keys. To be called once a level."""
        if not self._level:
            self._log_probs = self.scores = torch.zeros_like(scores)
        children = beam_perturb(
            logits,
            scores,
            self._log_probs,
            nodes,
            row_starts=row_starts,
            child_codes=child_codes,
            others=None if self._others is None else self._others[self._level],
            temperatures=self._temperatures,
            seeds=self._seeds,
            level=self._level,
            **legality,
        )
        nothing = torch.zeros_like(scores)
        chosen = beam_select(
            children.keys,
            nothing.masked_fill(scores == -torch.inf, -torch.inf),
            nodes,
            row_starts=row_starts,
            out_starts=out_starts,
            child_codes=child_codes,
            log_normalizer=nothing,
            num_out=num_out,
            early_stop=early_stop,
            **legality,
        )
        if log_normalizer is None:
            log_normalizer = logits.logsumexp(-1)
        parents = chosen.parents.long()
        codes = child_codes[chosen.nodes.clamp(min=0).long()].long()
        missing = chosen.nodes < 0
        score = self.scores[parents] + (logits[parents, codes] - log_normalizer[parents])
        self.scores = score.masked_fill(missing, -torch.inf)
        self._log_probs = (self._log_probs[parents] + children.log_probs[parents, codes]).masked_fill(missing, 0.0)
        self._level += 1
        return chosen


def seed_of(request: RecommendRequest) -> int:
    """The request's own, or one that follows from who asks for what: an answer that is computed again is the same."""
    if request.seed is not None:
        return request.seed
    name = f"{request.user_id}\0{request.request_id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)
