"""One beam decode for many requests over cached prefixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import add

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.beam_descend import beam_descend
from xgr_kernels.beam_select import BeamSelection, beam_select
from xgr_kernels.legal_normalizer import legal_normalizer
from xgr_stream.cache import PrefixCache, UserPrefix
from xgr_stream.catalog import ResolvedFilter
from xgr_stream.config import Normalizer
from xgr_stream.engine.ablation import Searched, select_masking_last
from xgr_stream.engine.exploring import Exploration
from xgr_stream.engine.graph_cache import GraphCache
from xgr_stream.engine.graphs import Graphs
from xgr_stream.engine.lanes import Gates, Lane
from xgr_stream.engine.legality import LegalityTables
from xgr_stream.engine.results import ResultBuffers, Results
from xgr_stream.engine.shapes import DecodeShape
from xgr_stream.engine.staging import Int32Array, Staging
from xgr_stream.engine.suffix import Suffix
from xgr_stream.engine.switches import Switches
from xgr_stream.model import Model
from xgr_stream.model.decoder import Attend
from xgr_stream.model.layers import Style
from xgr_stream.types import RecommendRequest

ROOTS = 2
"""Beams that each request begins with: at the root of the catalog and at that of its delta, so that graphs need not be
captured anew for one. Without a delta the second has no children, and costs nothing that could be measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Beams:
    """The finished beams of a batch; request i owns rows `row_starts[i]:row_starts[i + 1]`, best first."""

    row_starts: Sequence[int]
    leaves: NDArray[np.int32]
    """[rows]; -1: the request found fewer legal semantic IDs than it has rows."""
    scores: NDArray[np.float32]
    """[rows]"""


@dataclass(frozen=True, slots=True, eq=False)
class PendingBeams:
    """A decode that may still be running."""

    row_starts: Sequence[int]
    results: Results

    def wait(self) -> Beams:
        """Block until the beams are there. To be called once."""
        leaves, scores = self.results.wait()
        return Beams(self.row_starts, leaves, scores)


class BeamDecoder:
    """Beam search over semantic IDs, all levels of all requests at once.

    Level 0 is scored from the cached hidden states; each further level takes one forward of all beams. Keys and
    values never move: a beam finds its own few tokens through ancestor indices. On CUDA all of it, selection
    included, is one graph for each total of rows: lengths, widths and filters are data that it reads. Nothing waits
    for the device before the end.
    """

    def __init__(
        self,
        model: Model,
        cache: PrefixCache,
        normalizer: Normalizer,
        lane: Lane,
        switches: Switches,
        graphs: GraphCache,
        *,
        page_columns: int,
    ) -> None:
        """`page_columns`: pages of the longest prefix to expect; a longer one has its graphs captured anew."""
        self._decoder = model.decoder
        self._levels = model.tokens.levels
        self._cache = cache
        self._normalizer = normalizer
        self._lane = lane
        self._switches = switches
        self._device = cache.hidden.device
        self._cuda = self._device.type == "cuda"
        self._graphs = None
        if self._cuda and switches.graphs:
            # A captured decode goes on with each layer of a prefix that comes back from host memory once it is there.
            gates = None if cache.host is None else Gates(self._device, model.config.num_layers)
            self._graphs = Graphs(lane, graphs, gates)
        self._generation = 0, 0
        self._staging: dict[tuple[int, int], Staging] = {}
        self._roots: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._results = ResultBuffers(self._device)
        self._page_columns = page_columns
        self.searched: list[Searched] = []
        """Of the last decode without a graph, per level."""

    def begin(
        self,
        prefixes: Sequence[UserPrefix],
        widths: Sequence[int],
        filters: Sequence[ResolvedFilter],
        legality: LegalityTables,
        explorers: Sequence[RecommendRequest] = (),
    ) -> PendingBeams:
        """Start looking for the `widths[i]` best legal semantic IDs after `prefixes[i]`; with `explorers`, the requests
        themselves, for so many drawn at their temperatures. The prefixes' memory must stay until the beams are
        there."""
        with self._lane.current():
            legality.bring(filters)
            starts = [[0] * (1 + self._levels)]
            for width in widths:
                # No level can have more beams than nodes, so none is computed that could only be dead.
                own = ROOTS, *[min(width, nodes) for nodes in legality.num_nodes]
                starts.append(list(map(add, starts[-1], own)))
            shape = self._shape(prefixes, starts[-1][1:])
            staging = self._staging_for(shape, legality)

            def write(arrays: Mapping[str, Int32Array]) -> None:
                for i, prefix in enumerate(prefixes):
                    arrays["slots"][i] = prefix.hidden_slot
                    arrays["lengths"][i] = prefix.kv_tokens
                    arrays["pages"][i, : len(prefix.pages)] = prefix.pages
                arrays["row_starts"].T[:] = starts + starts[-1:] * (shape.requests - len(prefixes))
                legality.write(filters, arrays)

            staging.send(write)
            legality.exclusions.send(filters)
            if explorers:
                self._explore(shape, staging.tensors, legality, explorers)
            else:
                self._run(shape, staging.tensors, legality)
            results = self._results.send(shape.rows[-1], self._lane)
        staging.read_by(results.mark)
        legality.exclusions.read_by(results.mark)
        return PendingBeams([ends[-1] for ends in starts], results)

    def _shape(self, prefixes: Sequence[UserPrefix], rows: Sequence[int]) -> DecodeShape:
        columns = max(len(prefix.pages) for prefix in prefixes)
        if not self._cuda:
            return DecodeShape(len(prefixes), tuple(rows), columns)
        shape = DecodeShape.bucket(len(prefixes), rows, max(columns, self._page_columns))
        self._page_columns = shape.page_columns
        return shape

    def _staging_for(self, shape: DecodeShape, legality: LegalityTables) -> Staging:
        key = shape.requests, shape.page_columns
        staging = self._staging.get(key)
        if staging is None:
            requests, levels = shape.requests, self._levels
            arrays = {
                "slots": (requests,),
                "lengths": (requests,),
                "row_starts": (levels + 1, requests + 1),
                "pages": (requests, shape.page_columns),
                **legality.shapes(requests),
            }
            staging = Staging(arrays, self._device)
            if not self._cuda:  # any length is a shape of its own there
                self._staging.clear()
            self._staging[key] = staging
        return staging

    def _run(self, shape: DecodeShape, inputs: Mapping[str, Tensor], legality: LegalityTables) -> None:
        def step(style: Style) -> None:
            selection = self._search(shape, inputs, legality, style)
            self._results.write(selection.nodes, selection.scores)

        styles = self._decoder.styles(max(shape.rows))
        if self._graphs is None:
            self.searched = []
            step(styles[0])
            return
        if self._generation != legality.generation:
            self._generation = legality.generation
            self._graphs.clear()
        self._graphs.run(shape, step, styles)

    def _explore(
        self,
        shape: DecodeShape,
        inputs: Mapping[str, Tensor],
        legality: LegalityTables,
        explorers: Sequence[RecommendRequest],
    ) -> None:
        """The same as `_run`, by chance, and not captured: a graph for each shape more would pay for few."""
        self.searched = []
        exploration = Exploration(explorers, shape.requests, legality.shared, self._device)
        style = self._decoder.styles(max(shape.rows))[0]
        selection = self._search(shape, inputs, legality, style, exploration.select)
        self._results.write(selection.nodes, exploration.scores)

    def _search(
        self,
        shape: DecodeShape,
        inputs: Mapping[str, Tensor],
        legality: LegalityTables,
        style: Style,
        select: Callable[..., BeamSelection] | None = None,
    ) -> BeamSelection:
        """`select`: instead of `beam_select`."""
        trie, row_starts = legality.trie, inputs["row_starts"].unbind()
        legality.exclude(inputs)
        self._lane.await_layer(0)  # hidden states come before it
        hidden = self._cache.hidden.index_select(0, inputs["slots"])
        nodes, request_of, scores = self._roots_of(shape.requests)
        ancestors = nodes.new_empty(len(nodes), max(1, self._levels - 1))
        suffix = Suffix(self._decoder, self._cache.pool, inputs, steps=self._levels - 1, rows=max(shape.rows))
        if select is None:
            select = beam_select if self._switches.mask_first else select_masking_last
        for level in range(self._levels):
            logits, log_normalizer = self._logits(hidden, level)
            if level == 0:
                logits = logits.index_select(0, request_of)
                log_normalizer = None if log_normalizer is None else log_normalizer.index_select(0, request_of)
            children = {
                "row_starts": row_starts[level],
                "child_starts": trie.child_starts[level],
                "child_codes": trie.child_codes[level],
                "node_masks": legality.node_masks[level],
                "mask_index": inputs["mask_index"],
                "emptied_starts": inputs["emptied_starts"],
                "emptied_nodes": legality.exclusions.emptied_nodes[level],
            }
            if self._normalizer == "legal":
                log_normalizer = legal_normalizer(logits, nodes, others=trie.others[level], **children)
            selection = select(
                logits,
                scores,
                nodes,
                out_starts=row_starts[level + 1],
                log_normalizer=log_normalizer,
                num_out=shape.rows[level],
                early_stop=self._switches.early_stop,
                **children,
            )
            if self._graphs is None:
                self.searched.append(Searched(selection, scores, nodes, trie.child_starts[level]))
            if level == self._levels - 1:
                break
            scores, nodes = selection.scores, selection.nodes
            descent = beam_descend(
                selection.parents,
                nodes,
                child_codes=trie.child_codes[level],
                token_ids=self._decoder.level_tokens[level],
                embedding=self._decoder.embedding,
                row_starts=row_starts[level + 1],
                prefix_lengths=inputs["lengths"],
                step=level,
                ancestors=ancestors,
            )
            ancestors = descent.ancestors
            attend = suffix.step(
                level,
                descent.positions,
                ancestors,
                row_starts[level + 1],
                each_alone=not self._switches.staged_attention,
            )
            hidden = self._decoder.layers(descent.hidden, self._awaiting(attend), style=style)
        return selection

    def _roots_of(self, requests: int) -> tuple[Tensor, Tensor, Tensor]:
        """The beams that so many requests begin with: their nodes, requests and scores, [requests · ROOTS] each. Made
        when first asked for, which is before a capture: four launches that no graph needs."""
        roots = self._roots.get(requests)
        if roots is None:
            beams = torch.arange(requests * ROOTS, dtype=torch.int32, device=self._device)
            roots = beams % ROOTS, beams // ROOTS, torch.zeros(len(beams), device=self._device)
            self._roots[requests] = roots
        return roots

    def _awaiting(self, attend: Attend) -> Attend:
        """`attend`, each layer once it is there."""

        def attend_layer(layer: int, q: Tensor, k: Tensor, v: Tensor, /, **scaling: Tensor) -> Tensor:
            self._lane.await_layer(layer)
            return attend(layer, q, k, v, **scaling)

        return attend_layer

    def _logits(self, hidden: Tensor, level: int) -> tuple[Tensor, Tensor | None]:
        """The level's [rows, codes] and, for scores over the whole vocabulary, their log-normalizer [rows]."""
        if self._normalizer == "vocabulary":
            return self._decoder.level_and_vocabulary(hidden, level)
        return self._decoder.level_logits(hidden, level), None
