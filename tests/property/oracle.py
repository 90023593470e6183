"""What the engine must answer, computed the obvious way: one event, one item, one beam at a time, no cache, no trie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.model.reference import Kept, reference_forward
from xgr_kernels.fp8 import power_of_two_scales
from xgr_stream.config import WindowConfig
from xgr_stream.model import Model
from xgr_stream.types import ItemFilter, Recommendation

EPSILON = 1e-4
"""Scores this close count as equal (float32): matrix products of other row counts round differently."""
FP8_EPSILON = 0.02
"""The same with the KV cache in FP8: once in a thousand cases an element is rounded to the other side of a step."""

Sid = tuple[int, ...]


class Oracle:
    """Answers from the item table's columns (as `tiny_items` makes them), the checkpoint's xgr.json and plain
    full-sequence forwards."""

    def __init__(
        self, model: Model, items: Mapping[str, Sequence[Any]], xgr: Mapping[str, Any], *, fp8_cache: bool = False
    ) -> None:
        """`fp8_cache`: of the context, not of the beams' own tokens, keys and values are rounded to FP8."""
        self.model = model
        self.fp8_cache = fp8_cache
        self.codes = xgr["codes"]
        self.offset = xgr["item_tokens"]["offset"]
        self.xgr = xgr
        self.sid_of = {i: tuple(sid) for i, sid in zip(items["item_id"], items["sid"], strict=True)}
        self.tags_of = {i: set(tags) for i, tags in zip(items["item_id"], items["tags"], strict=True)}

    def token(self, level: int, code: int) -> int:
        return self.offset + sum(self.codes[:level]) + code

    def context(
        self, items: Sequence[str], actions: Sequence[str | None] | None = None, window: WindowConfig | None = None
    ) -> list[int]:
        """Tokens of a user who did all this."""
        event = self.xgr.get("event", {})
        tokens = list(self.xgr.get("prompt", []))
        start = (window or WindowConfig()).start(len(items))
        for item, action in list(zip(items, actions or [None] * len(items), strict=True))[start:]:
            if item in self.sid_of:
                tokens += event.get("begin", []) + event.get("actions", {}).get(action, [])
                tokens += [self.token(level, code) for level, code in enumerate(self.sid_of[item])]
                tokens += event.get("end", [])
        return tokens + list(self.xgr.get("tail", []))

    def legal(self, item_filter: ItemFilter, away: Sequence[str] = (), seen: Sequence[str] = ()) -> dict[str, Sid]:
        """Items that pass the filter and are not `away`; `seen`: what the user's history keeps."""

        def matches(entry: str | tuple[str, ...]) -> set[str]:
            return {entry} if isinstance(entry, str) else set(entry)

        def passes(item: str) -> bool:
            tags = self.tags_of[item]
            return (
                item not in item_filter.exclude
                and item not in away
                and not (item_filter.seen and item in seen)
                and not any(matches(entry) <= tags for entry in item_filter.deny)
                and (not item_filter.allow or any(matches(entry) <= tags for entry in item_filter.allow))
            )

        return {item: sid for item, sid in self.sid_of.items() if passes(item)}

    def exhaustive(self, context: list[int], legal: Mapping[str, Sid], normalizer: str) -> list[Recommendation]:
        """Every legal item, best first: by score, then semantic ID."""
        sids = set(legal.values())
        scores = {sid: self._score(context, sid, sids, normalizer) for sid in sids}
        return self._ranked(legal, scores)

    def beam_search(
        self, context: list[int], legal: Mapping[str, Sid], normalizer: str, width: int
    ) -> list[Recommendation]:
        """The legal items that a beam search of this width ends with."""
        sids = set(legal.values())
        beams: dict[Sid, float] = {(): 0.0}
        for level in range(len(self.codes)):
            candidates: dict[Sid, float] = {}
            for beam, score in beams.items():
                log_probs = self._log_probs(context, beam, sids, normalizer)
                candidates |= {(*beam, code): score + log_probs[code] for code in _next_codes(beam, sids)}
            best = sorted(candidates, key=lambda sid: (-candidates[sid], sid))[:width]
            beams = {sid: candidates[sid] for sid in best}
            assert all(len(sid) == level + 1 for sid in beams)
        return self._ranked({item: sid for item, sid in legal.items() if sid in beams}, beams)

    def _score(self, context: list[int], sid: Sid, sids: set[Sid], normalizer: str) -> float:
        return sum(self._log_probs(context, sid[:level], sids, normalizer)[sid[level]] for level in range(len(sid)))

    def _log_probs(self, context: list[int], beam: Sid, sids: set[Sid], normalizer: str) -> dict[int, float]:
        """Code → log-probability of the level after `beam`."""
        tokens = context + [self.token(level, code) for level, code in enumerate(beam)]
        with torch.inference_mode():
            kept = self._cached(len(context)) if self.fp8_cache else {}
            logits = reference_forward(self.model.decoder, torch.tensor(tokens), **kept)[-1].double()
        level = len(beam)
        codes = sorted(_next_codes(beam, sids)) if normalizer == "legal" else list(range(self.codes[level]))
        own = logits[[self.token(level, code) for code in codes]]
        total = (logits if normalizer == "vocabulary" else own).logsumexp(0)
        return dict(zip(codes, (own - total).tolist(), strict=True))

    def _cached(self, length: int) -> dict[str, Kept]:
        """Of the first `length` tokens, keys and values as FP8 has them."""
        scales = power_of_two_scales(self.model.decoder.kv_bounds)

        def kept(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = k.clone(), v.clone()
            for own, scale in zip((keys, values), scales[layer, :, :, None], strict=True):
                own[:length] = (own[:length] / scale).to(torch.float8_e4m3fn).float() * scale
            return keys, values

        return {"kept": kept}

    def _ranked(self, items: Mapping[str, Sid], scores: Mapping[Sid, float]) -> list[Recommendation]:
        found = [Recommendation(item, scores[sid], sid) for item, sid in items.items()]
        return sorted(found, key=lambda r: (-r.score, r.sid))


def _next_codes(beam: Sid, sids: set[Sid]) -> set[int]:
    return {sid[len(beam)] for sid in sids if sid[: len(beam)] == beam}


def assert_same(
    got: Sequence[Recommendation], expected: Sequence[Recommendation], k: int, epsilon: float = EPSILON
) -> None:
    """`got` is a best k of `expected` (at least the best k, best first): scores equal within `epsilon`, and items too
    but for the order of those whose scores are that close."""
    assert len(got) == min(k, len(expected))
    assert len({r.item_id for r in got}) == len(got)
    by_item = {r.item_id: r for r in expected}
    for mine, theirs in zip(got, expected, strict=False):
        assert abs(mine.score - theirs.score) < epsilon
        same = by_item[mine.item_id]
        assert abs(mine.score - same.score) < epsilon
        assert mine.sid == same.sid
