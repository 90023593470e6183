"""transformers' `generate`, constrained to a catalog: what an engine is measured against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xgr_stream.catalog import Catalog
from xgr_stream.errors import ConfigError
from xgr_stream.model import Model

DEAD = -1e8
"""Scores below mark beams that `generate` had no legal token for."""


class TransformersBaseline:
    """Beam search by `generate` with KV cache and a prefix constraint that is one dictionary look-up per beam."""

    def __init__(self, path: Path, model: Model, catalog: Catalog, beam: int) -> None:
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ConfigError("--against transformers needs it installed: pip install 'xgr-stream[dev]'") from error
        model_class: Any = AutoModelForCausalLM
        self._model = model_class.from_pretrained(path, dtype=torch.float32).eval()
        self._levels = catalog.levels
        self._beam = beam
        self._level_tokens = model.tokens.token_ids
        tokens = np.stack([ids[catalog.sids[:, level]] for level, ids in enumerate(model.tokens.token_ids)], axis=1)
        self._sid_of = {tuple(t): tuple(s) for t, s in zip(tokens.tolist(), catalog.sids.tolist(), strict=True)}
        self._next: dict[tuple[int, ...], list[int]] = {}
        for sequence in sorted(self._sid_of):
            for level, token in enumerate(sequence):
                allowed = self._next.setdefault(sequence[:level], [])
                if token not in allowed[-1:]:
                    allowed.append(token)

    def generate(self, contexts: NDArray[np.int64]) -> list[list[tuple[tuple[int, ...], float]]]:
        """contexts [batch, tokens] → per request (semantic ID, score), best first."""
        length = contexts.shape[1]
        anything = [int(self._level_tokens[0][0])]
        tokens = torch.from_numpy(contexts)
        with torch.inference_mode():
            output = self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                prefix_allowed_tokens_fn=lambda _, seen: self._next.get(tuple(seen[length:].tolist()), anything),
                num_beams=self._beam,
                num_return_sequences=self._beam,
                max_new_tokens=self._levels,
                length_penalty=0.0,
                do_sample=False,
                use_cache=True,
                eos_token_id=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
        chosen = output.sequences[:, length:].view(len(contexts), self._beam, -1).tolist()
        scores = output.sequences_scores.view(len(contexts), self._beam).tolist()
        return [
            [(self._sid_of[tuple(s)], score) for s, score in zip(own, own_scores, strict=True) if score > DEAD]
            for own, own_scores in zip(chosen, scores, strict=True)
        ]
