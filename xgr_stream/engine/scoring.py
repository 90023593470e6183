"""The log-probabilities of items that a request names, as a beam search that kept their beams alone would have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.beam_descend import beam_descend
from xgr_kernels.legal_normalizer import legal_normalizer
from xgr_stream.cache import PrefixCache, UserPrefix
from xgr_stream.catalog import Catalog, Trie
from xgr_stream.catalog.forest import Forest
from xgr_stream.config import Normalizer
from xgr_stream.engine.decode import PendingBeams
from xgr_stream.engine.lanes import Lane
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.engine.results import ResultBuffers
from xgr_stream.engine.shapes import bucket
from xgr_stream.engine.staging import Int32Array, fill_pages
from xgr_stream.engine.suffix import Suffix
from xgr_stream.model import Model
from xgr_stream.types import Unscored


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The items that one request wants scored, in one catalog."""

    rows: Int32Array
    """Of those that have a score. [items]"""
    leaves: Int32Array
    """Theirs, ascending, each once. [leaves]"""
    unscored: Mapping[str, Unscored]
    """The others, and why."""

    @classmethod
    def of(cls, catalog: Catalog, item_ids: Sequence[str]) -> Candidates:
        rows = catalog.rows(item_ids)
        scored = (rows >= 0) & catalog.available[rows]
        unscored = {
            item_ids[place]: Unscored.UNKNOWN if rows[place] < 0 else Unscored.UNAVAILABLE
            for place in np.flatnonzero(~scored).tolist()
        }
        rows = rows[scored]
        return cls(rows, np.unique(catalog.forest.leaves.take(rows)), unscored)


@dataclass(frozen=True, slots=True, eq=False)
class _Depth:
    """The nodes of one depth on the paths to all candidates of a batch, request by request; the tensors' rows."""

    row_starts: Tensor
    """[requests + 1] int32"""
    parents: Tensor
    """[rows] int32: rows of the depth before."""
    nodes: Tensor
    """[rows] int32"""


class CandidateScorer:
    """Walks down the trie along the candidates' paths: at each level one forward of the distinct prefixes of all
    candidates of all requests, the last level none. Cached prefixes are read once per request and level, as in a beam
    decode, of whose kernels it is made. Not captured: requests of this kind come in all sizes, and seldom."""

    def __init__(self, model: Model, cache: PrefixCache, normalizer: Normalizer, lane: Lane) -> None:
        self._decoder = model.decoder
        self._levels = model.tokens.levels
        self._cache = cache
        self._normalizer = normalizer
        self._lane = lane
        self._device = cache.hidden.device
        self._results = ResultBuffers(self._device)

    def begin(
        self,
        prefixes: Sequence[UserPrefix],
        leaves: Sequence[Int32Array],
        trie: Trie | Forest,
        legality: LegalityTables,
    ) -> PendingBeams:
        """Start scoring `leaves[i]`, ascending, after `prefixes[i]`: the answer's beams are the leaves, in their order.
        The prefixes' memory must stay until they are there."""
        row_starts = list(accumulate((len(own) for own in leaves), initial=0))
        with self._lane.current():
            legality.bring([])
            depths = self._depths(trie, leaves)
            scores = self._scores(self._inputs(prefixes), depths, legality)
            # Few sizes, since each has a buffer of its own.
            rows = bucket(len(scores))
            padding = (0, rows - len(scores))
            pad = torch.nn.functional.pad
            self._results.write(pad(depths[-1].nodes, padding, value=-1), pad(scores, padding))
            return PendingBeams(row_starts, self._results.send(rows, self._lane))

    def _inputs(self, prefixes: Sequence[UserPrefix]) -> dict[str, Tensor]:
        pages = np.zeros((len(prefixes), max(len(prefix.pages) for prefix in prefixes)), np.int32)
        fill_pages(pages, [prefix.pages for prefix in prefixes])
        arrays = {
            "slots": np.array([prefix.hidden_slot for prefix in prefixes], np.int32),
            "lengths": np.array([prefix.kv_tokens for prefix in prefixes], np.int32),
            "pages": pages,
        }
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _depths(self, trie: Trie | Forest, leaves: Sequence[Int32Array]) -> list[_Depth]:
        depths: list[_Depth] = []
        owner = np.repeat(np.arange(len(leaves)), [len(own) for own in leaves])  # [leaves of all]
        everything = np.concatenate(leaves)
        places = owner  # of the node above each leaf, among the rows of the depth before
        for above in trie.paths(everything):
            begins = (np.diff(above, prepend=-1) != 0) | (np.diff(owner, prepend=-1) != 0)
            first = np.flatnonzero(begins)  # the first leaf below each row
            starts = np.searchsorted(owner[first], np.arange(len(leaves) + 1))
            depths.append(_Depth(*map(self._tensor, (starts, places[first], above[first]))))
            places = np.cumsum(begins) - 1
        return depths

    def _scores(self, inputs: Mapping[str, Tensor], depths: Sequence[_Depth], legality: LegalityTables) -> Tensor:
        """[leaves of all]"""
        trie, steps = legality.trie, self._levels - 1
        hidden = self._cache.hidden.index_select(0, inputs["slots"])
        scores = torch.zeros(len(hidden), device=self._device)
        nodes = torch.zeros(len(hidden), dtype=torch.int32, device=self._device)
        ancestors = nodes.new_zeros(len(hidden), max(1, steps))
        most = max(len(depth.nodes) for depth in depths)
        suffix = Suffix(self._decoder, self._cache.pool, inputs, steps=steps, rows=most)
        for level, depth in enumerate(depths):
            logits = self._decoder.level_logits(hidden, level)
            norms = self._log_normalizers(logits, hidden, nodes, level, legality)
            parents = depth.parents.long()
            codes = trie.child_codes[level][depth.nodes.long()].long()
            scores = scores[parents] + (logits[parents, codes] - norms[parents])
            nodes = depth.nodes
            if level == steps:
                break
            descent = beam_descend(
                depth.parents,
                nodes,
                child_codes=trie.child_codes[level],
                token_ids=self._decoder.level_tokens[level],
                embedding=self._decoder.embedding,
                row_starts=depth.row_starts,
                prefix_lengths=inputs["lengths"],
                step=level,
                ancestors=ancestors,
            )
            ancestors = descent.ancestors
            attend = suffix.step(level, descent.positions, ancestors, depth.row_starts)
            hidden = self._decoder.layers(descent.hidden, attend)
        return scores

    def _log_normalizers(
        self, logits: Tensor, hidden: Tensor, nodes: Tensor, level: int, legality: LegalityTables
    ) -> Tensor:
        """[rows], of the rows at `nodes`, whose next level's `logits` are [rows, codes]."""
        if self._normalizer == "level":
            return logits.logsumexp(-1)
        if self._normalizer == "vocabulary":
            return self._decoder.vocabulary_log_normalizer(hidden)
        trie = legality.trie  # as one request without filters has it
        return legal_normalizer(
            logits,
            nodes,
            row_starts=self._tensor(np.array([0, len(nodes)])),
            child_starts=trie.child_starts[level],
            child_codes=trie.child_codes[level],
            node_masks=legality.node_masks[level],
            mask_index=nodes.new_zeros(1),
            emptied_starts=nodes.new_zeros(2),
            emptied_nodes=legality.exclusions.emptied_nodes[level],
            others=trie.others[level],
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.astype(np.int32)).to(self._device, non_blocking=True)
