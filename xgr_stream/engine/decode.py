"""One beam decode for many requests over cached prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.beam_select import beam_select
from xgr_kernels.kv_write import kv_write
from xgr_kernels.staged_attention import staged_attention
from xgr_stream.cache import PrefixCache, UserPrefix
from xgr_stream.config import Normalizer
from xgr_stream.engine.legality import BatchLegality, TrieTensors
from xgr_stream.engine.tables import page_table, to_device
from xgr_stream.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class Beams:
    """The finished beams of a batch; request i owns rows `row_starts[i]:row_starts[i + 1]`, best first."""

    row_starts: NDArray[np.int64]
    leaves: NDArray[np.int32]
    """[rows]; -1: the request found fewer legal semantic IDs than it has rows."""
    scores: NDArray[np.float32]
    """[rows]"""


class BeamDecoder:
    """Beam search over semantic IDs, all levels of all requests at once.

    Level 0 is scored from the cached hidden states; each further level takes one forward of all beams. Keys and
    values never move: a beam finds its own few tokens through ancestor indices. Nothing waits for the device before
    the end.
    """

    def __init__(self, model: Model, cache: PrefixCache, normalizer: Normalizer) -> None:
        self._decoder = model.decoder
        self._levels = model.tokens.levels
        self._cache = cache
        self._normalizer = normalizer
        device = cache.hidden.device
        self._level_tokens = tuple(to_device(ids.copy(), device) for ids in model.tokens.token_ids)

    def decode(
        self, prefixes: Sequence[UserPrefix], widths: Sequence[int], trie: TrieTensors, legality: BatchLegality
    ) -> Beams:
        """The `widths[i]` best legal semantic IDs after `prefixes[i]`. Writes to nothing but its own buffers."""
        device = self._cache.hidden.device
        # No level can have more beams than nodes, so none is computed that could only be dead.
        starts = [np.arange(len(prefixes) + 1)]
        starts += [_starts(np.minimum(widths, nodes)) for nodes in trie.num_nodes]
        row_starts = [to_device(s.astype(np.int32), device) for s in starts]
        slots = np.concatenate([prefix.hidden_slot for prefix in prefixes])
        suffix = _Suffix(self, prefixes, steps=self._levels - 1, rows=int(starts[-2][-1]))

        hidden = self._cache.hidden[to_device(slots.astype(np.int64), device)]
        scores = torch.zeros(len(prefixes), device=device)
        nodes = torch.zeros(len(prefixes), dtype=torch.int32, device=device)
        for level in range(self._levels):
            selection = beam_select(
                self._decoder.level_logits(hidden, level),
                scores,
                nodes,
                row_starts=row_starts[level],
                out_starts=row_starts[level + 1],
                child_starts=trie.child_starts[level],
                child_codes=trie.child_codes[level],
                node_masks=legality.node_masks[level],
                mask_index=legality.mask_index,
                emptied_starts=legality.emptied_starts[level],
                emptied_nodes=legality.emptied_nodes[level],
                normalizer="level" if self._normalizer == "vocabulary" else self._normalizer,
                log_normalizer=self._log_normalizer(hidden),
                num_out=int(starts[level + 1][-1]),
            )
            scores, nodes = selection.scores, selection.nodes
            if level < self._levels - 1:
                # A missing beam (node -1) computes node 0's token; its score of -inf keeps it out.
                codes = trie.child_codes[level][nodes.clamp(min=0)]
                suffix.descend(selection.parents, owner=starts[level + 1], row_starts=row_starts[level + 1])
                hidden = self._decoder.forward(self._level_tokens[level][codes], suffix.positions, suffix)
        return Beams(starts[-1], nodes.cpu().numpy(), scores.cpu().numpy())

    def _log_normalizer(self, hidden: Tensor) -> Tensor | None:
        """[rows], for scores over the whole vocabulary."""
        if self._normalizer != "vocabulary":
            return None
        return self._decoder.vocabulary_logits(hidden).logsumexp(dim=-1)


class _Suffix:
    """The beams' own tokens in one decode, and attention over prefix and suffix."""

    def __init__(self, owner: BeamDecoder, prefixes: Sequence[UserPrefix], *, steps: int, rows: int) -> None:
        self._decoder = owner._decoder
        self._pool = owner._cache.pool
        layers, _, kv_heads, _, head_dim = self._pool.k.shape
        device = self._pool.k.device
        # [layers, steps, rows, kv_heads, head_dim]: a beam of step s keeps its token at [:, s, row].
        self._k = torch.empty(layers, steps, rows, kv_heads, head_dim, dtype=self._pool.k.dtype, device=device)
        self._v = torch.empty_like(self._k)
        self._scale = head_dim**-0.5
        self._page_table = to_device(page_table([prefix.pages for prefix in prefixes]), device)
        self._lengths = np.array([prefix.kv_tokens for prefix in prefixes])
        self._prefix_lengths = to_device(self._lengths.astype(np.int32), device)
        self._step = -1
        self._ancestors = torch.empty(0, 0, dtype=torch.int32, device=device)
        self.positions = torch.empty(0, dtype=torch.int64, device=device)
        self._slots = self._rows = self.positions

    def descend(self, parents: Tensor, *, owner: NDArray[np.int64], row_starts: Tensor) -> None:
        """The next step's beams continue `parents` [rows]; request i owns rows `owner[i]:owner[i + 1]`."""
        self._step += 1
        rows = len(parents)
        device = parents.device
        own = torch.arange(rows, dtype=torch.int32, device=device)[:, None]
        self._ancestors = torch.cat((self._ancestors[parents], own), dim=1) if self._step else own
        self._row_starts = row_starts
        self.positions = to_device(np.repeat(self._lengths + self._step, np.diff(owner)), device)
        self._slots = self._step * self._k.shape[2] + own[:, 0].long()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        suffix_k, suffix_v = self._k[layer], self._v[layer]
        q = kv_write(
            q,
            k,
            v,
            positions=self.positions,
            slots=self._slots,
            cos_sin=self._decoder.cos_sin,
            k_pages=suffix_k.flatten(0, 1)[:, :, None],
            v_pages=suffix_v.flatten(0, 1)[:, :, None],
            q_norm=self._decoder.q_norm(layer),
            k_norm=self._decoder.k_norm(layer),
            eps=self._decoder.rms_eps,
        )
        steps, rows = self._step + 1, len(q)
        return staged_attention(
            q,
            self._pool.k[layer],
            self._pool.v[layer],
            self._page_table,
            self._prefix_lengths,
            self._row_starts,
            suffix_k[:steps, :rows],
            suffix_v[:steps, :rows],
            self._ancestors,
            scale=self._scale,
        )


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n + 1]: where each of n runs of these lengths begins, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(lengths)))
